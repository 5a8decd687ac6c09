"""What the client of an OpenAI-compatible server sends, waits for and gives up on."""

from __future__ import annotations

import json

import pytest

from errata.core.errors import BadEndpoint
from errata.io.chat_client import Endpoint, NoReply, json_object
from tests.endpoint import said, serving


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_the_request_is_a_chat_completion_with_the_key_of_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    with serving(lambda body: said("fine")) as stub:
        endpoint = Endpoint(f"{stub.url}/", "m", key_env="SOME_KEY")
        got = endpoint.chat([{"role": "user", "content": "hä?"}], max_tokens=7, temperature=0.5)
    (path, headers, body), *others = stub.requests
    assert (got, path, others) == ("fine", "/v1/chat/completions", [])
    assert headers["Authorization"] == "Bearer s3cret"
    assert body["messages"] == [{"role": "user", "content": "hä?"}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0.5)


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with serving(lambda body: said("x")) as stub:
        Endpoint(stub.url, "m", key_env="SOME_KEY").chat([], max_tokens=1)
    assert "Authorization" not in stub.requests[0][1]


def test_a_busy_server_is_asked_again_after_the_pause_it_wants():
    replies = iter([(429, "{}", {"Retry-After": "7"}), (503, "busy", {}), said("at last")])
    pauses: list[float] = []
    with serving(lambda body: next(replies)) as stub:
        got = Endpoint(stub.url, "m", sleep=pauses.append).chat([], max_tokens=1)
    assert (got, pauses) == ("at last", [7.0, 2.0])


def test_a_server_that_stays_busy_is_given_up_and_the_pauses_double():
    pauses: list[float] = []
    with serving(lambda body: (500, "", {})) as stub:
        endpoint = Endpoint(stub.url, "m", tries=4, sleep=pauses.append)
        with pytest.raises(BadEndpoint, match=r"answers 500 .* 4 times"):
            endpoint.chat([], max_tokens=1)
    assert pauses == [1.0, 2.0, 4.0] and len(stub.requests) == 4


@pytest.mark.parametrize("code", [401, 402, 403])
def test_no_permission_is_said_at_once_and_names_the_variable(code, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    reply = (code, json.dumps({"error": {"message": "no credit left"}}), {})
    with serving(lambda body: reply) as stub:
        with pytest.raises(BadEndpoint, match=f"{code} .no credit left.*SOME_KEY") as e:
            Endpoint(stub.url, "m", key_env="SOME_KEY").chat([], max_tokens=1)
    assert len(stub.requests) == 1 and "s3cret" not in str(e.value)


def test_a_redirection_is_not_followed_with_the_key():
    with serving(lambda body: said("stolen")) as thief:
        with serving(lambda body: (307, "", {"Location": f"{thief.url}/chat/completions"})) as stub:
            with pytest.raises(BadEndpoint, match="307"):
                Endpoint(stub.url, "m").chat([], max_tokens=1)
    assert thief.requests == []


def test_a_refused_request_concerns_itself_alone():
    with serving(lambda body: (400, '{"error": "content filter"}', {})) as stub:
        with pytest.raises(NoReply, match="content filter"):
            Endpoint(stub.url, "m").chat([], max_tokens=1)
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "body", ["", "[]", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}']
)
def test_a_reply_of_another_shape_is_no_reply(body):
    with serving(lambda _: (200, body, {})) as stub:
        with pytest.raises(NoReply):
            Endpoint(stub.url, "m").chat([], max_tokens=1)


def test_nobody_there():
    with serving(lambda body: said("x")) as stub:
        pass
    with pytest.raises(BadEndpoint, match="cannot be reached"):
        Endpoint(stub.url, "m", tries=2, sleep=lambda s: None).chat([], max_tokens=1)
    with pytest.raises(BadEndpoint, match="is no endpoint"):
        Endpoint("file:///etc/passwd", "m")


def test_json_is_read_strictly():
    assert json_object(' {"a": 1} ') == {"a": 1}
    assert json_object('```json\n{"a": true}\n```') == {"a": True}
    for bad in ("", "{", 'Sure! {"a": 1}', '{"a": 1} {"a": 2}', "[1]", "true", "```", "``````"):
        with pytest.raises(ValueError, match="reply is"):
            json_object(bad)


def test_a_reply_without_end_is_not_read_whole():
    with serving(lambda body: (200, " " * (17 * 2**20), {})) as stub:
        with pytest.raises(NoReply, match="more than"):
            Endpoint(stub.url, "m").chat([], max_tokens=1)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://host:99999", "http://a b", "ftp://x", "http://ü.example"]
)
def test_what_is_no_url(url):
    with pytest.raises(BadEndpoint, match="is no endpoint"):
        Endpoint(url, "m")


def test_half_a_surrogate_pair_is_no_text():
    with serving(
        lambda body: (200, '{"choices": [{"message": {"content": "a\\ud800"}}]}', {})
    ) as s:
        assert Endpoint(s.url, "m").chat([], max_tokens=1) == "a?"
    with pytest.raises(ValueError, match="surrogate"):
        json_object('{"a": "\\ud800"}')
