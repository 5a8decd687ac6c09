"""Attributes from an endpoint, against a local stub: stages, refusals, going on after a kill."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from errata.benchmarks.unike_umm.build.folder import Attributes, build_umm
from errata.cli import app
from errata.core.errors import BadEndpoint, BadSpec
from errata.io.chat_client import Endpoint
from tests.endpoint import said, serving

OBJECTS = [("banana", "yellow", "blue"), ("tomato", "red", "green"), ("crow", "black", "white")]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def stage(subject, old, new, number):
    return {
        "question": f"What is the color of a {subject}, case {number}?",
        "prompt": f"In case {number} the color of a {subject} is",
        "gt": old,
        "gt_target": new,
        "image_prompt": f"Picture {number} of a {subject}.",
        "visual_target": f"The {subject} must be {new}.",
        "vqa_question": "Which color is seen?",
    }


def answer(body, objects=OBJECTS, spoil=None):
    """A model that follows orders; `spoil` may replace a stage."""
    text = body["messages"][1]["content"]
    if text.startswith("Name "):
        left = text.split("Leave out: ")[1].split(". Format")[0].split(", ")
        items = [dict(zip(("subject", "gt", "gt_target"), o, strict=True)) for o in objects]
        return said(json.dumps({"objects": [i for i in items if i["subject"] not in left]}))
    subject, old, new = re.findall(r'"([^"]+)"', text)[:3]
    number = 1 + sum(f"Picture {n} of" in text for n in (1, 2, 3, 4))
    good = stage(subject, old, new, number)
    return said(spoil(good, number) if spoil else json.dumps(good))


def build(stub, out, count=2, **more):
    endpoint = Endpoint(stub.url, "m", tries=1)
    return build_umm(out, (), Attributes(endpoint, ("color",), count, **more), lambda *a: None)


def test_four_stages_per_object(tmp_path):
    with serving(answer) as stub:
        facts = build(stub, tmp_path)
    records = json.loads((tmp_path / "UniKE.json").read_text())
    assert [(r["subject"], r["category"], r["source"]) for r in records] == [
        ("banana", "color", "attribute"),
        ("tomato", "color", "attribute"),
    ]
    assert all(set(r) >= {f"stage_{n}" for n in (1, 2, 3, 4)} for r in records)
    assert records[0]["stage_3"] == stage("banana", "yellow", "blue", 3)
    assert facts["attributes"]["records"] == 2 and facts["attributes"]["rejected"] == 0
    assert len(stub.requests) == 1 + 2 * 4


def test_a_finished_build_asks_nothing_again_and_a_killed_one_goes_on(tmp_path):
    with serving(answer) as stub:
        build(stub, tmp_path / "whole")
        asked = len(stub.requests)
        wanted = (tmp_path / "whole" / "UniKE.json").read_bytes()
        build(stub, tmp_path / "whole")
        assert len(stub.requests) == asked

        lines = (tmp_path / "whole" / "replies.jsonl").read_text().splitlines(keepends=True)
        cut = tmp_path / "cut"
        cut.mkdir()
        (cut / "replies.jsonl").write_text("".join(lines[:4]) + lines[4][:30])
        build(stub, cut)
        assert len(stub.requests) == asked + len(lines) - 4
        assert (cut / "UniKE.json").read_bytes() == wanted
        assert (cut / "replies.jsonl").read_text() == "".join(lines)


def test_a_server_that_dies_leaves_what_it_said(tmp_path):
    left = iter(range(5))

    def dying(body):
        return answer(body) if next(left, None) is not None else (500, "", {})

    with serving(dying) as stub, pytest.raises(BadEndpoint, match="repeat the same command"):
        build(stub, tmp_path)
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "UniKE.json").exists()
    with serving(answer) as stub:
        build(stub, tmp_path)
    assert len(stub.requests) == 9 - 5


def test_a_bad_stage_is_asked_again_then_dropped_and_a_bad_first_one_drops_the_object(tmp_path):
    def spoil(good, number):
        if number == 2 and "banana" in good["prompt"]:
            return json.dumps({**good, "image_prompt": f"A {good['gt']} banana."})
        if "tomato" in good["prompt"]:
            return "I would rather not."
        return json.dumps(good)

    with serving(lambda body: answer(body, spoil=spoil)) as stub:
        build(stub, tmp_path)
    records = json.loads((tmp_path / "UniKE.json").read_text())
    # With stage 2 missing the stub numbers the next one 2 again, and spoils that too.
    assert [(r["subject"], sorted(set(r) & {f"stage_{n}" for n in (1, 2, 3, 4)})) for r in records]
    assert records[0]["subject"] == "banana" and "stage_2" not in records[0]
    assert records[1]["subject"] == "crow" and "stage_4" in records[1]
    rejected = [json.loads(x) for x in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    reasons = [(r["subject"], r["stage"], r["reason"]) for r in rejected]
    assert reasons.count(("banana", "stage_2", "image_prompt names the old answer")) == 2
    assert reasons.count(("tomato", "stage_1", "the reply is not JSON")) == 2
    assert ("tomato", "stage_2", "the reply is not JSON") not in reasons
    assert next(r for r in rejected if r["subject"] == "tomato")["data"] == "I would rather not."


def test_bad_proposals_are_kept_with_their_reason(tmp_path):
    objects = [
        *OBJECTS[:1],
        ("Banana", "yellow", "red"),
        ("red brick", "red", "blue"),
        ("sky", "blue", "Blue"),
        ("", "blue", "red"),
        ("leaf", 7, "red"),
    ]
    with serving(lambda body: answer(body, objects)) as stub:
        facts = build(stub, tmp_path, count=1)
    assert facts["attributes"]["by reason"] == {
        "duplicate: the object was proposed before": 1,
        "the subject names an answer": 1,
        "old answer and target look the same": 1,
        "the proposal holds something else than texts": 2,
    }


def test_a_model_that_has_no_more_ideas_ends_the_category(tmp_path):
    with serving(lambda body: answer(body, OBJECTS[:1])) as stub:
        facts = build(stub, tmp_path, count=3)
    assert facts["attributes"]["records"] == 1
    assert len(stub.requests) == 1 + 4 + 3


def test_refused_content_is_a_rejection_not_a_crash(tmp_path):
    def refusing(body):
        bad = "tomato" in body["messages"][1]["content"].split("Earlier")[0][:40]
        return (400, '{"error": "content filter"}', {}) if bad else answer(body)

    with serving(refusing) as stub:
        build(stub, tmp_path)
    rejected = [json.loads(x) for x in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {r["reason"] for r in rejected} == {"it answers 400 (content filter)"}


def test_a_stage_must_keep_to_the_edit(tmp_path):
    def other(good, number):
        return json.dumps({**good, "gt_target": "pink", "visual_target": "It must be pink."})

    with serving(lambda body: answer(body, OBJECTS[:1], other)) as stub:
        facts = build(stub, tmp_path, count=1)
    assert facts["attributes"]["records"] == 0
    assert "gt_target is not that of the object" in facts["attributes"]["by reason"]


def test_wrong_settings():
    endpoint = Endpoint("http://x/v1", "m")
    with pytest.raises(BadSpec, match=r"unknown category 'colour'.*color"):
        Attributes(endpoint, ("colour",))
    with pytest.raises(BadSpec, match="--count 0"):
        Attributes(endpoint, count=0)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", "k")
    out = str(tmp_path / "o")
    with serving(answer) as stub:
        args = ["data", "build-umm", "--out", out, "--endpoint", stub.url, "--model", "m"]
        args += ["--category", "color", "--count", "1", "--key-env", "KEY_OF_TEST", "--json"]
        result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attributes"]["records"] == 1
    assert stub.requests[0][1]["Authorization"] == "Bearer k"
    assert "KEY_OF_TEST" not in "".join(p.read_text() for p in (tmp_path / "o").iterdir())
    with pytest.raises(BadSpec, match="go together"):
        args = ["data", "build-umm", "--out", out, "--model", "m"]
        CliRunner().invoke(app, args, catch_exceptions=False)
