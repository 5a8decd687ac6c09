"""`errata serve` as its clients see it: the official client, plain HTTP, many at once."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

import errata
from errata import Edit, Prompt
from errata.core.types import Image
from errata.io.images import load_image
from errata.serve.service import Setup
from errata.serve.settings import Access, Limits
from tests.serving import ADMIN, CHAT, TOKEN, TestServer, bearer, data_url, question, served

pytestmark = pytest.mark.trained

COLOUR, SHAPE = "What colour is the ring?", "What shape is it?"
LONG = "a long answer of so many words"
ACCESS = Access(token=TOKEN, admin=ADMIN)


def png(seed: int, shape: str = "ring") -> bytes:
    scene = f"shape={shape},colour=blue,pattern=striped,accent=black,size=small,position=centre"
    picture = load_image(Image(f"microworld:{scene},background=grey,seed={seed}"))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


RING, CROSS = data_url(png(1)), data_url(png(2, "cross"))
QUESTIONS = [(COLOUR, RING), (SHAPE, RING), (SHAPE, CROSS), ("Who made the ring?", None)]
NAMES = ("purple", "red", "green", "said")


@pytest.fixture(scope="module")
def model() -> Any:
    return errata.load("micro-vlm")


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of four kinds: a change of weights, an adapter, a memory, a stored answer."""
    place = tmp_path_factory.mktemp("patches")
    asked = Prompt.of(COLOUR, png(1))

    def make(name: str, target: str, prompt: Prompt, editor: str, **options: Any) -> None:
        maker = errata.editor(editor, **options).for_backbone(model)
        errata.save_patch(maker.edit(model, [Edit(prompt, target)]).patch, place / name)

    make("purple", "purple", asked, "ft_l")
    make("red", "red", asked, "lora", steps=12)
    make("green", "green", asked, "ft_l", scope="lookup")
    make("said", LONG, Prompt.of(SHAPE), "say", scope="same_question")
    return place


@pytest.fixture(scope="module")
def server(model: Any, folder: Path) -> Iterator[TestServer]:
    with served(model, Setup(name="micro-vlm", folder=folder, access=ACCESS)) as running:
        yield running


@pytest.fixture(scope="module")
def alone(model: Any, folder: Path) -> dict[tuple[str, int], str]:
    """(model name, question) -> the answer that errata gives without a server."""
    answers = {}
    for name in ("", *NAMES, "purple+said"):
        patches = [errata.load_patch(folder / n, model) for n in name.split("+") if n]
        with model.applied(*patches):
            for i, (text, picture) in enumerate(QUESTIONS):
                image = None if picture is None else base64.b64decode(picture.split(",")[1])
                (answer,) = errata.ask(model, [Prompt.of(text, image)], cap=64)
                answers["+".join(["micro-vlm", *filter(None, [name])]), i] = answer.text
    return answers


def client(server: TestServer, token: str = TOKEN) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=token, max_retries=0)


def idle(server: TestServer) -> bool:
    """Whether nothing is left to do, after a moment."""
    deadline = time.monotonic() + 20
    while server.service.engine.growing or server.service.engine.waiting:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- answers ----------------------------------------------------------------------------------


def test_the_official_client_gets_the_answers_that_errata_gives(server, alone):
    api = client(server)
    names = [m.id for m in api.models.list()]
    assert names[0] == "micro-vlm" and set(names[1:]) == {f"micro-vlm+{n}" for n in NAMES}
    assert alone["micro-vlm+purple", 0] == "purple" != alone["micro-vlm", 0]
    for (name, i), wanted in alone.items():
        reply = api.chat.completions.create(model=name, messages=question(*QUESTIONS[i]))
        assert reply.choices[0].message.content == wanted, (name, i)
        assert reply.choices[0].finish_reason == "stop"
        assert reply.model == name
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    marks = {n: api.chat.completions.create(model=n, messages=question(COLOUR)).system_fingerprint
             for n in ("micro-vlm", "micro-vlm+red", "micro-vlm+purple")}  # fmt: skip
    assert len(set(marks.values())) == 3


@pytest.mark.parametrize("name", ["micro-vlm", "micro-vlm+said"])
def test_a_stream_is_the_same_answer_in_pieces(server, alone, name):
    stream = client(server).chat.completions.create(
        model=name, messages=question(SHAPE, RING), stream=True,
        stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == alone[name, 1]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    steps = [t for c in chunks if c.choices and c.choices[0].logprobs
             for t in c.choices[0].logprobs.content]  # fmt: skip
    assert len(steps) == chunks[-1].usage.completion_tokens
    assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 for t in steps)
    assert "".join(t.token for t in steps) == alone[name, 1]
    assert len({c.id for c in chunks}) == 1


def test_unedited_answers_have_the_bits_of_the_model_alone_beside_edited_ones(server, model):
    """Log-probabilities as floats, equal; while others with patches are answered."""
    prompt = Prompt.of("Where is the thing in the picture?", png(2, "cross"))
    wanted = []
    with model.only(), model.ask(model.encode([prompt])) as q:
        logits = q.logits[0, -1]
        for _ in range(6):
            wanted.append(float(logits.log_softmax(-1).max()))
            logits = q.feed(logits.argmax().view(1, 1))[0, -1]
    busy = threading.Event()

    def others() -> None:
        while not busy.is_set():
            server.said("micro-vlm+purple", COLOUR, RING)
            server.said("micro-vlm+said", SHAPE, CROSS)

    body = {"model": "micro-vlm", "messages": question(prompt.text, CROSS), "logprobs": True}
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(others) for _ in range(3)]
        try:
            for _ in range(4):
                choice = server.ask(body).json()["choices"][0]
                got = [t["logprob"] for t in choice["logprobs"]["content"]]
                assert got and got == wanted[: len(got)]
        finally:
            busy.set()
        for one in running:
            one.result()


def test_32_clients_with_four_patches_are_answered_as_alone(server, alone):
    before = shared_forwards(server)
    jobs = [(n, i) for n, i in alone if "+" in n for _ in range(2)][:32] + [("micro-vlm", 0)] * 4

    def one(job: tuple[str, int]) -> tuple[tuple[str, int], str]:
        return job, server.said(job[0], *QUESTIONS[job[1]])

    with ThreadPoolExecutor(len(jobs)) as pool:
        for job, said in pool.map(one, jobs):
            assert said == alone[job], job
    assert shared_forwards(server) > before  # they were in one batch
    assert idle(server)


def shared_forwards(server: TestServer) -> int:
    """Forwards that answered more than four questions at once."""
    text = server.http.get("/metrics").text
    total = float(re.search(r"^errata_forward_rows_count (\S+)$", text, re.M)[1])
    small = float(re.search(r'^errata_forward_rows_bucket{le="4.0"} (\S+)$', text, re.M)[1])
    return int(total - small)


# -- settings ---------------------------------------------------------------------------------


def test_sampling_settings_have_an_effect(server):
    def answers(**settings: Any) -> list[str]:
        return [server.said("micro-vlm+red", "Who made the ring?", **settings) for _ in range(3)]

    assert len(set(answers(temperature=2, seed=11))) == 1
    seeds = {server.said("micro-vlm", "Which colour?", temperature=2, seed=s) for s in range(6)}
    assert len(seeds) > 1
    narrow = {server.said("micro-vlm", "Which colour?", temperature=2, seed=s, top_p=1e-6)
              for s in range(4)}  # fmt: skip
    assert narrow == {server.said("micro-vlm", "Which colour?")}


def test_stop_and_max_tokens_end_an_answer(server):
    body = {"model": "micro-vlm+said", "messages": question(SHAPE)}
    cut = server.ask({**body, "max_tokens": 3}).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 3
    assert LONG.startswith(cut["choices"][0]["message"]["content"])
    for stop in ("many", ["words", " many"]):
        stopped = server.ask({**body, "stop": stop}).json()["choices"][0]
        wanted = LONG.split(" many")[0]
        assert stopped["message"]["content"].strip() == wanted
        assert stopped["finish_reason"] == "stop"


# -- who may do what ----------------------------------------------------------------------------


def test_tokens(server):
    http = httpx.Client(base_url=server.url, timeout=60)

    def status(method: str, path: str, token: str | None, **options: Any) -> int:
        headers = {} if token is None else bearer(token)
        return http.request(method, path, headers=headers, **options).status_code

    body = {"model": "micro-vlm", "messages": question("Which?"), "max_tokens": 1}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/no/route"):
        assert status("GET", path, None) == 401
        assert status("GET", path, "wrong") == 401
        for odd in (b"Bearer t\xf6ken", b"Basic " + TOKEN.encode(), b"Bearer", TOKEN.encode()):
            reply = http.get(path, headers={b"Authorization": odd})
            assert reply.status_code == 401
        assert status("GET", path, TOKEN) == status("GET", path, ADMIN) != 401
    assert status("POST", CHAT, None, json=body) == 401
    assert status("POST", CHAT, ADMIN, json=body) == 200
    assert status("GET", "/health", None) == 200
    for method, path in (("GET", "/v1/patches"), ("POST", "/v1/edits"),
                         ("POST", "/v1/patches/red/unload")):  # fmt: skip
        assert status(method, path, TOKEN) == 403
        assert status(method, path, None) == status(method, path, "x" * 24) == 401
    http.close()
    with pytest.raises(openai.AuthenticationError):
        client(server, "wrong").models.list()


def test_request_ids_and_the_log_without_texts(server):
    secret = "Who made the very secret ring?"
    reply = server.ask(
        {"model": "micro-vlm+red", "messages": question(secret)},
        headers={"X-Request-Id": "my-own.id"},
    )
    assert reply.headers["x-request-id"] == "my-own.id"
    other = server.http.get("/v1/models", headers={"X-Request-Id": "bad id"})
    assert re.fullmatch(r"req-[0-9a-f]{16}", other.headers["x-request-id"])
    time.sleep(0.1)
    line = next(e for e in server.lines if e.get("id") == "my-own.id")
    assert line["status"] == 200 and line["model"] == "micro-vlm+red"
    assert line["prompt_tokens"] > 5 and line["route"] == CHAT
    text = server.stream.getvalue()
    assert "secret" not in text and TOKEN not in text and ADMIN not in text
    assert not [e for e in server.lines if e["event"] == "bug"]


# -- clients that misbehave -----------------------------------------------------------------------


def raw(server: TestServer, body: dict[str, Any], *, announced: int | None = None) -> socket.socket:
    """A connection on which a question was sent, and nothing read."""
    data = json.dumps(body).encode()
    length = len(data) if announced is None else announced
    head = (f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n")  # fmt: skip
    line = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 20)
    line.sendall(head.encode() + data)
    return line


def test_clients_that_hang_up_leave_nothing_behind(server, alone):
    body = {"model": "micro-vlm+said", "messages": question(SHAPE), "stream": True}
    lines = [raw(server, {**body, "stream": n % 2 == 0}) for n in range(6)]
    lines[0].recv(100)
    for line in lines:
        line.close()
    assert server.said("micro-vlm+said", SHAPE, RING) == alone["micro-vlm+said", 1]
    assert idle(server)
    assert not server.service.engine.shared or not any(s.rows for s in server.service.engine.shared)


def test_a_slow_reader_does_not_hold_up_the_others(server, alone):
    body = {"model": "micro-vlm+said", "messages": question(SHAPE), "stream": True}
    slow = [raw(server, body) for _ in range(4)]
    assert server.said("micro-vlm", COLOUR, RING) == alone["micro-vlm", 0]
    assert idle(server)
    for line in slow:
        text = b""
        while b"[DONE]" not in text:
            text += line.recv(200)
        line.close()


def test_a_patch_that_is_unloaded_while_in_use_answers_to_the_end(server, folder):
    stream = client(server).chat.completions.create(
        model="micro-vlm+said", messages=question(SHAPE), stream=True
    )
    pieces = [next(stream).choices[0].delta.content or "" for _ in range(2)]
    assert server.admin("POST", "/v1/patches/said/unload").json()["loaded"] is False
    pieces += [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(pieces) == LONG
    gone = server.ask({"model": "micro-vlm+said", "messages": question(SHAPE)})
    assert gone.status_code == 404
    listed = {p["name"]: p for p in server.admin("GET", "/v1/patches").json()["data"]}
    assert listed["said"]["loaded"] is False and listed["said"]["saved"] is True
    assert server.admin("POST", "/v1/patches/said/unload").status_code == 404
    assert server.admin("POST", "/v1/patches/said/load").status_code == 200
    assert server.said("micro-vlm+said", SHAPE) == LONG


# -- edits ----------------------------------------------------------------------------------------


def test_an_edit_is_made_verified_saved_and_served(server, folder):
    wanted = {
        "prompt": COLOUR, "image": RING, "target": "white", "name": "white-ring",
        "rephrase": "Which colour has the ring?",
        "unrelated": [{"prompt": SHAPE, "image": CROSS}, {"prompt": "Who made the ring?"}],
    }  # fmt: skip
    made = server.admin("POST", "/v1/edits", json=wanted).json()
    assert made["patch"] == "white-ring" and made["saved"] is True
    check = made["verification"]
    assert check["holds"] is True
    assert check["target"]["before"] == "blue" and check["target"]["after"] == "white"
    assert check["rephrase"]["question"] == "Which colour has the ring?"
    assert [u["question"] for u in check["unrelated"]] == [SHAPE, "Who made the ring?"]
    assert all(u["same"] == (u["before"] == u["after"]) for u in check["unrelated"])
    assert server.said(made["model"], COLOUR, RING) == "white"
    assert server.said("micro-vlm", COLOUR, RING) == "blue"
    assert (folder / "white-ring" / "patch.json").is_file()
    again = server.admin("POST", "/v1/edits", json=wanted)
    assert again.status_code == 409 and again.json()["error"]["code"] == "name_taken"
    on_top = {"prompt": SHAPE, "image": RING, "target": "disc", "model": "micro-vlm+white-ring",
              "editor": "say", "scope": "same_question"}  # fmt: skip
    second = server.admin("POST", "/v1/edits", json=on_top).json()
    assert second["editor"] == "say" and len(second["verification"]["unrelated"]) == 3
    assert server.said(f"{made['model']}+{second['patch']}", COLOUR, RING) == "white"
    assert server.said(f"{made['model']}+{second['patch']}", SHAPE, RING) == "disc"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"target": " "}, 400),
        ({"editor": "nothing"}, 400),
        ({"editor": "mend"}, 400),
        ({"scope": "nothing"}, 400),
        ({"name": "../x"}, 400),
        ({"name": "a/b"}, 400),
        ({"name": "purple"}, 409),
        ({"subject": "elephant", "editor": "rome"}, 400),
        ({"model": "micro-vlm+no"}, 404),
        ({"image": "/etc/passwd"}, 400),
        ({"settings": {"stats": "/etc/passwd"}}, 400),
        ({"unrelated": []}, 400),
    ],
    ids=lambda v: json.dumps(v),
)
def test_an_edit_that_cannot_be_made_leaves_nothing(server, folder, change, status):
    before = sorted(p.name for p in folder.iterdir())
    body = {"prompt": COLOUR, "image": RING, "target": "white", "editor": "say", **change}
    reply = server.admin("POST", "/v1/edits", json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]
    assert sorted(p.name for p in folder.iterdir()) == before


def test_metrics_count(server):
    client(server).chat.completions.create(model="micro-vlm+red", messages=question(COLOUR, RING))
    text = server.http.get("/metrics").text
    for name in ("errata_requests_total", "errata_request_seconds_bucket", "errata_tokens_total",
                 "errata_waiting", "errata_growing", "errata_patches",
                 "process_resident_memory_bytes"):  # fmt: skip
        assert re.search(rf"^{name}[ {{]", text, re.M), name
    assert "\n# TYPE errata_edits_total counter\n" in text
    assert re.search(r"^errata_bugs_total 0.0$", text, re.M)
    chats = re.search(
        r'^errata_requests_total{route="/v1/chat/completions",status="200"} (\S+)$', text, re.M
    )
    assert 1 <= float(chats[1]) < math.inf


# -- limits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(model: Any, folder: Path) -> Iterator[TestServer]:
    """A server whose limits are soon reached."""
    limits = Limits(
        body=40_000, image=20_000, images=1, pixels=5000, prompt_tokens=60, tokens=30, queue=2,
        batch=1, patches=4, requests=8, body_seconds=0.4,
    )  # fmt: skip
    given = {n: folder / n for n in NAMES}
    setup = Setup(name="vlm", given=given, limits=limits, access=Access())
    with served(model, setup) as running:
        yield running


def test_limits_are_4xx_in_openais_form(narrow):
    two = [{"type": "image_url", "image_url": {"url": RING}}] * 2
    wide = io.BytesIO()
    load_image(Image(RING)).resize((100, 51)).save(wide, "PNG")
    words = "which " * 60
    for change, status, code in (
        ({"messages": question(COLOUR, "data:," + "x" * 50_000)}, 413, "request_too_large"),
        ({"messages": [{"role": "user", "content": [*two, {"type": "text", "text": "?"}]}]}, 400,
         "too_many_images"),
        ({"messages": question(COLOUR, data_url(wide.getvalue()))}, 400, "invalid_image"),
        ({"messages": question(COLOUR, data_url(b"x" * 21_000))}, 400, "invalid_image"),
        ({"messages": question(words)}, 400, "context_length_exceeded"),
        ({"max_tokens": 31}, 400, "too_many_tokens"),
    ):  # fmt: skip
        body = {"model": "vlm+said", "messages": question(COLOUR), **change}
        reply = narrow.ask(body)
        assert reply.status_code == status, reply.text
        assert reply.json()["error"]["code"] == code
    # a body that does not say how long it is
    chunks = (b'{"model": "' + b"x" * 9000 for _ in range(9))
    assert narrow.http.post(CHAT, content=chunks).status_code == 413
    assert narrow.admin("POST", "/v1/edits", json={}).status_code == 403  # no token was set


def test_too_many_wait_and_none_is_lost(narrow, alone):
    def one(_: int) -> Any:
        return narrow.ask({"model": "vlm+said", "messages": question(SHAPE), "max_tokens": 30})

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(one, range(24)))
    statuses = [r.status_code for r in replies]
    assert set(statuses) == {200, 429}
    for r in replies:
        if r.status_code == 429:
            assert 1 <= int(r.headers["Retry-After"]) <= 60
            assert r.json()["error"]["type"] == "rate_limit_error"
        else:
            assert r.json()["choices"][0]["message"]["content"] == LONG
    assert idle(narrow)


def test_a_request_that_does_not_arrive_is_given_up(narrow):
    line = raw(narrow, {"model": "vlm"}, announced=500)
    assert b" 408 " in line.recv(400)
    line.close()


# -- pictures that are drawn ----------------------------------------------------------------------


def test_pictures_are_those_that_errata_draws(server, tmp_path):
    umm = errata.load("micro-umm")
    with served(umm, Setup(name="umm")) as drawing:
        api = openai.OpenAI(base_url=f"{drawing.url}/v1", api_key="any", max_retries=0)
        drawn = api.images.generate(
            model="umm", prompt="a photo of a dax", n=2, extra_body={"seed": 3}
        )
        for seed, picture in zip((3, 4), drawn.data, strict=True):
            rows = torch.zeros(1, dtype=torch.long)
            ((wanted,),) = umm.draw([Prompt.of("a photo of a dax")], [seed], rows=rows)
            got = load_image(Image(data_url(base64.b64decode(picture.b64_json))))
            assert got.tobytes() == wanted.tobytes()
        for change in ({"size": "1024x1024"}, {"n": 9}, {"prompt": ""}, {"quality": "hd"}):
            body = {"model": "umm", "prompt": "a dax", **change}
            assert drawing.http.post("/v1/images/generations", json=body).status_code == 400
    body = {"model": "micro-vlm", "prompt": "a dax"}
    refused = server.http.post("/v1/images/generations", json=body)
    assert refused.status_code == 400 and "draws no" in refused.json()["error"]["message"]
