"""Requests that the server refuses: settings without effect, odd bodies, images, paths."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image as Pillow

import errata
from errata import Edit, Prompt
from errata.serve.service import Setup
from errata.serve.settings import Access
from tests import tiny
from tests.serving import ADMIN, TOKEN, TestServer, data_url, question, served

ASKED = "Which shape?"


def _png() -> bytes:
    buffer = io.BytesIO()
    Pillow.effect_noise((28, 28), 50).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    bb, folder = tiny.llava(), tmp_path_factory.mktemp("patches")
    said = errata.editor("say").for_backbone(bb).edit(bb, [Edit(Prompt.of(ASKED), "a ring")])
    errata.save_patch(said.patch, Path(folder) / "said")
    setup = Setup(name="tiny", folder=folder, access=Access(token=TOKEN, admin=ADMIN))
    with served(bb, setup) as running:
        yield running


BAD: list[dict[str, Any]] = [
    {"top_p": 0.5},
    {"temperature": 3},
    {"temperature": -1},
    {"n": 2},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
    {"logit_bias": {"1": 2}},
    {"tools": []},
    {"user": "me"},
    {"max_tokens": 0},
    {"max_tokens": 10**6},
    {"max_tokens": 3, "max_completion_tokens": 3},
    {"top_logprobs": 2},
    {"logprobs": True, "top_logprobs": 21},
    {"stream_options": {"include_usage": True}},
    {"stop": ["a"] * 5},
    {"seed": 2**70},
    {"messages": []},
    {"messages": [{"role": "system", "content": "Be brief."}]},
    {"messages": [*question("One?"), *question("Two?")]},
    {"messages": question("  ")},
    {"messages": question("half \ud800 of a pair")},
    {"messages": question("an <image> of its own")},
    {"messages": question("word " * 3000)},
    {"messages": question(ASKED, "/etc/passwd")},
    {"messages": question(ASKED, "file:///etc/passwd")},
    {"messages": question(ASKED, "microworld:shape=ring")},
    {"messages": question(ASKED, "https://127.0.0.1/a.png")},
    {"messages": question(ASKED, "https://localhost/a.png")},
    {"messages": question(ASKED, "http://img.example.org/a.png")},
    {"messages": question(ASKED, "data:image/png;base64,####")},
    {"messages": question(ASKED, "data:image/png;base64,")},
    {"messages": question(ASKED, "data:image/png,raw")},
    {"messages": question(ASKED, data_url(PNG[:60]))},
    {"messages": question(ASKED, data_url(b"no image at all"))},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Which?"}] * 101}]},
    {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    {"model": ""},
    {"model": 3},
    {"model": "tiny" + "+said" * 9},
]


@pytest.mark.parametrize("change", BAD, ids=lambda c: json.dumps(c)[:60])
def test_what_cannot_be_done_is_a_400_that_says_why(server, change):
    text = json.dumps({"model": "tiny+said", "messages": question(ASKED), **change})
    reply = server.send(text)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert len(error["message"]) > 10 and error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("name", ["gpt-4", "tiny+", "tiny+no", "tiny+../red", "+said",
                                  "tiny+said+no", "tiny+said/../said"])  # fmt: skip
def test_unknown_models_are_404(server, name):
    api = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)
    with pytest.raises(openai.NotFoundError) as e:
        api.chat.completions.create(model=name, messages=question(ASKED))
    assert e.value.code == "model_not_found"


def test_malformed_bodies_are_400(server):
    for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 2000, b"[" * 100_000,
                 b'{"model": NaN}', b'{"seed":' + b"9" * 5000 + b"}"):  # fmt: skip
        reply = server.send(body)
        assert reply.status_code == 400, body[:40]
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize("name", ["..%2Fsaid", "%2e%2e", ".hidden", "a%2Fb", "nothing", "said%00"])
def test_no_name_of_a_request_is_a_path(server, name):
    assert server.admin("POST", f"/v1/patches/{name}/load").status_code in (400, 404)
