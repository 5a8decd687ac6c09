"""The judge behind an endpoint, against a stub server: what is sent, what is a verdict."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from errata.core.errors import BadEndpoint, BadSpec
from errata.core.measure.judge import may_retry
from errata.core.types import JudgeQuestion, Verdict
from errata.judges.openai import Openai, read_blind, read_criterion
from tests.endpoint import Reply, said, serving

VIEW = JudgeQuestion("What colour is it?", "The velm is red.", "red", "blue", "color")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    out = []
    for i, size in enumerate(((24, 24), (1024, 512))):
        out.append(tmp_path / f"{i}.png")
        Image.new("RGB", size, (255, 0, i)).save(out[-1])
    return out


def judged(
    answer: Callable[[dict[str, Any]], Reply], paths: list[Path], **settings: Any
) -> tuple[list[Verdict], list[Any]]:
    with serving(answer) as stub:
        judge = Openai(endpoint=stub.url, model="eye", tries=2, sleep=lambda _: None, **settings)
        return judge.judge([(p, VIEW) for p in paths]), stub.requests


YES = said('{"observation": "a red thing", "matches_target": true}')


def test_what_is_sent(pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret")
    verdicts, requests = judged(lambda body: YES, pictures, key_env="SOME_KEY")
    assert [(v.meets, v.answer, v.note) for v in verdicts] == [(True, "", "a red thing")] * 2
    assert {v.judge for v in verdicts} == {"openai@1:criterion:eye"}
    sizes = set()
    for _, headers, body in requests:
        assert headers["Authorization"] == "Bearer s3cret"
        assert (body["model"], body["temperature"]) == ("eye", 0.0)
        picture, text = body["messages"][0]["content"]
        assert VIEW.question in text["text"] and VIEW.criterion in text["text"]
        data = picture["image_url"]["url"].removeprefix("data:image/png;base64,")
        sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == {(264, 264), (512, 256)}  # small ones whole times larger, large ones smaller


def test_blind_does_not_show_the_target(pictures: list[Path]) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        text = body["messages"][0]["content"][1]["text"]
        assert VIEW.question in text
        assert VIEW.target not in text.replace("answered", "") and VIEW.criterion not in text
        return said('{"observation": "", "answer": "bright red"}')

    verdicts, _ = judged(answer, pictures, mode="blind")
    assert [(v.answer, v.meets) for v in verdicts] == [("bright red", True)] * 2
    assert verdicts[0].judge == "openai@1:blind:eye"


@pytest.mark.parametrize(
    ("reply", "meets"),
    [
        ('{"matches_target": true}', True),
        ('{"observation": "x", "matches_target": false, "explanation": "true"}', False),
        ('```json\n{"matches_target": false}\n```', False),
    ],
)
def test_a_boolean_is_a_verdict(reply: str, meets: bool) -> None:
    assert read_criterion(reply, VIEW)[1] is meets


@pytest.mark.parametrize(
    "reply",
    [
        '{"matches_target": "false"}',  # bool("false") is True
        '{"matches_target": "true"}',
        '{"matches_target": 1}',
        '{"matches_target": null}',
        '{"matches": true}',
        '{"observation": "it matches, true", "matches_target": tr',  # cut off
        "true, it matches the target",
        '[{"matches_target": true}]',
        '{"matches_target": true} I am sure.',
        '{"matches_target": false, "matches_target": true}',
        "",
    ],
)
def test_anything_else_is_none(reply: str) -> None:
    with pytest.raises(ValueError):
        read_criterion(reply, VIEW)


def test_blind_answers() -> None:
    assert read_blind('{"answer": "Red."}', VIEW)[:2] == ("Red.", True)
    assert read_blind('{"answer": "textured"}', VIEW)[:2] == ("textured", False)
    assert read_blind('{"answer": "not red"}', VIEW)[:2] == ("not red", False)
    assert read_blind('{"answer": null}', VIEW)[:2] == ("", False)
    for reply in ('{"answer": true}', '{"answer": ["red"]}', "{}"):
        with pytest.raises(ValueError, match="answer"):
            read_blind(reply, VIEW)


def test_a_reply_that_is_no_verdict_waits_and_the_others_count(pictures: list[Path]) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        data = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
        return YES if picture.getpixel((0, 0))[2] else said('{"matches_target": "false"}')

    (first, second), _ = judged(answer, pictures)
    assert first.meets is None and may_retry(first) and "not true or false" in first.note
    assert second.meets is True


def test_a_missing_picture_does_not_wait(pictures: list[Path], tmp_path: Path) -> None:
    (gone, there), _ = judged(lambda body: YES, [tmp_path / "gone.png", pictures[0]])
    assert gone.meets is None and not may_retry(gone) and "gone.png" in gone.note
    assert there.meets is True


def test_a_busy_server_is_asked_again(pictures: list[Path]) -> None:
    replies = iter([(429, "{}", {}), YES])
    (verdict,), requests = judged(lambda body: next(replies), pictures[:1])
    assert verdict.meets is True and len(requests) == 2


def test_a_server_that_breaks_down_leaves_pictures_waiting(pictures: list[Path]) -> None:
    done = []

    def answer(body: dict[str, Any]) -> Reply:
        done.append(body)
        return YES if len(done) == 1 else (503, "", {})

    verdicts, _ = judged(answer, pictures * 10)
    assert sum(v.meets is True for v in verdicts) == 1
    assert all(may_retry(v) for v in verdicts if v.meets is None)


@pytest.mark.parametrize("code", [401, 402, 503])
def test_nothing_judged_is_an_error(code: int, pictures: list[Path]) -> None:
    reply = (code, json.dumps({"error": {"message": "no"}}), {})
    with pytest.raises(BadEndpoint, match=str(code)):
        judged(lambda body: reply, pictures)


def test_settings() -> None:
    with pytest.raises(BadSpec, match="--endpoint URL"):
        Openai()
    with pytest.raises(BadSpec, match="criterion or blind"):
        Openai(endpoint="http://x/v1", model="m", mode="half")
    with pytest.raises(BadEndpoint):
        Openai(endpoint="file:///etc/passwd", model="m")
