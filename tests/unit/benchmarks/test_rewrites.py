"""CounterFact and MQuAKE, in the formats in which they are published."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.benchmarks._rewrites import split_of
from errata.cli import main
from errata.core import registry
from errata.core.errors import BadData
from errata.core.measure.benchmark import BenchmarkSpec, Loaded
from errata.core.types import Answer, Case, Scored, Skip, from_json, to_json
from errata.evaluation.bench import bench
from errata.evaluation.plan import filter_cases
from tests import tiny


def subjects(split: str) -> list[str]:
    names = [f"Thing {i}" for i in range(100)]
    return [n for n in names if split_of(n) == split]


def rewrite(subject: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt": "The colour of {} is",
        "relation_id": "P462",
        "target_new": {"str": "red", "id": "Q1"},
        "target_true": {"str": "blue", "id": "Q2"},
        "subject": subject,
        **more,
    }


def rome(number: int, subject: str) -> dict[str, Any]:
    return {
        "case_id": number,
        "pararel_idx": 7,
        "requested_rewrite": rewrite(subject),
        "paraphrase_prompts": [f"Today. {subject} has the colour", f"{subject}, coloured"],
        "neighborhood_prompts": [f"The colour of thing {i} is" for i in range(10)],
        "attribute_prompts": ["The colour of blood is"],
        "generation_prompts": [f"{subject} looks like"],
    }


def flat(number: int, subject: str) -> dict[str, Any]:
    return {
        "case_id": number,
        "prompt": f"The colour of {subject} is",
        "target_new": "red",
        "subject": subject,
        "ground_truth": "blue",
        "rephrase_prompt": f"{subject} has the colour",
        "locality_prompt": "The colour of the sky is",
        "locality_ground_truth": "blue",
    }


def multi_hop(number: int, subject: str, edits: int = 1) -> dict[str, Any]:
    hop = {"question": f"What colour is {subject}?", "cloze": f"The colour of {subject} is"}
    tail = {"question": "What is red made of?", "cloze": "Red is made of", "answer": "ochre"}
    first = rewrite(subject, question=hop["question"])
    second = rewrite("red", question="?", target_new={"str": f"lead {number}"})
    return {
        "case_id": number,
        "requested_rewrite": [first, second][:edits],
        "questions": [f"What is the colour of {subject} made of?", "Of what?", "What is in it?"],
        "answer": "woad",
        "answer_alias": [],
        "new_answer": "ochre",
        "new_answer_alias": ["red ochre"],
        "single_hops": [{**hop, "answer": "blue"}, {**tail, "answer": "woad"}],
        "new_single_hops": [{**hop, "answer": "red"}, tail],
        "orig": {},
    }


def load(path: Path, records: Any, spec: str) -> Loaded:
    path.write_text(json.dumps(records))
    parsed = BenchmarkSpec.parse(spec.format(path))
    assert str(parsed) == (spec if "@" in spec else f"{spec}@eval").format(path)
    found = registry.load("benchmarks", parsed.name)().load(parsed)
    assert isinstance(found, Loaded)
    assert all(from_json(Case, to_json(case)) == case for case in found.cases)
    return found


def table(case: Case) -> list[tuple[str, str, str, str]]:
    return [(p.id, p.prompt.text, p.reference, p.contrast) for p in case.probes]


def test_counterfact_as_rome_and_as_recipe_write_it(tmp_path: Path) -> None:
    name = subjects("eval")[0]
    records = [rome(3, name), flat(4, name), flat(5, subjects("dev")[0])]
    nested, plain = load(tmp_path / "c.json", records, "counterfact:{}").cases
    assert nested.id == "counterfact-3" and nested.origin == "correction"
    assert nested.edit.subject == name and (nested.edit.target, nested.edit.old) == ("red", "blue")
    assert table(nested)[:4] == [
        ("reliability", f"The colour of {name} is", "red", "blue"),
        ("t_generality/0", f"Today. {name} has the colour", "red", "blue"),
        ("t_generality/1", f"{name}, coloured", "red", "blue"),
        ("near_locality/0", "The colour of thing 0 is", "blue", "red"),
    ]
    assert len(nested.probes) == 13
    assert [p.kind for p in plain.probes] == ["reliability", "t_generality", "near_locality"]
    (dev,) = load(tmp_path / "c.json", records, "counterfact:{}@dev/known").cases
    assert dev.id == "counterfact-5" and dev.origin == "counterfactual"


def test_splits_share_no_subject_and_are_fixed() -> None:
    assert {n: split_of(n) for n in ("Hey Jude", "Danielle Darrieux", "Lyon")} == {
        "Hey Jude": "eval", "Danielle Darrieux": "eval", "Lyon": split_of("lyon"),
    }  # fmt: skip
    sizes = {s: len(subjects(s)) for s in ("train", "dev", "eval")}
    assert sum(sizes.values()) == 100 and min(sizes.values()) > 3 and sizes["eval"] > 55


def test_mquake_asks_what_follows_from_one_edit(tmp_path: Path) -> None:
    one, other = subjects("eval")[:2]
    records = [multi_hop(1, one), multi_hop(2, other, edits=2), multi_hop(3, other, edits=2)]
    found = load(tmp_path / "m.json", records, "mquake:{}")
    case = found.cases[0]
    assert table(case)[:3] == [
        ("reliability", f"The colour of {one} is", "red", "blue"),
        ("t_generality", f"What colour is {one}?", "red", "blue"),
        ("portability/0", f"What is the colour of {one} made of?", "ochre", "woad"),
    ]
    hop = case.probes[2].hop
    assert hop is not None and (hop.prompt.text, hop.reference) == ("Red is made of", "ochre")
    assert {p.group for p in case.probes[2:]} == {"2_hop"}
    assert not any(p.kind == "portability" for c in found.cases[1:] for p in c.probes)
    reasons = {s.id: s.reason for s in found.skipped}
    assert "several edits" in reasons["mquake-2/portability"]
    assert "mquake-2-0" in reasons["mquake-3-0"]  # the same edit again


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject": ""}, "'subject' is empty"),
        ({"subject": "Another"}, "not part of the prompt"),
        ({"target_new": 3}, "'target_new' is no text"),
        ({"target_new": "Blue"}, "the new answer is the true one"),
        ({"rephrase_prompt": None}, "'rephrase_prompt' is no text"),
        ({"requested_rewrite": []}, "no object"),
        ({"requested_rewrite": rewrite("x", prompt="No place")}, "needs one {}"),
        ({"requested_rewrite": {**rewrite("x"), "target_true": "b"}}, "target_true' is no object"),
        ({"case_id": 1}, "twice"),
    ],
)
def test_bad_records_are_skipped_with_the_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    name = subjects("eval")[0]
    found = load(
        tmp_path / "c.json", [flat(1, name), {**flat(2, name), **change}], "counterfact:{}"
    )
    assert [c.id for c in found.cases] == ["counterfact-1"]
    assert found.skipped[0].id == "row-00001" and reason in found.skipped[0].reason


def test_bad_records_of_mquake_are_skipped(tmp_path: Path) -> None:
    name = subjects("eval")[0]
    broken = [copy.deepcopy(multi_hop(i, name)) for i in range(3)]
    broken[0]["new_single_hops"][0]["cloze"] = broken[0]["new_single_hops"][0]["question"] = "?"
    broken[1]["questions"] = "one"
    broken[2]["requested_rewrite"] = {}
    found = load(tmp_path / "m.json", broken, "mquake:{}")
    assert found.cases == () and [type(s) for s in found.skipped] == [Skip] * 3


@pytest.mark.parametrize("data", [b"{", b"{}", b"[]", b"[1]", b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["counterfact", "mquake"])
def test_files_of_another_shape_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    spec = BenchmarkSpec.parse(f"{name}:{path}")
    with pytest.raises(BadData) as caught:
        registry.load("benchmarks", name)().load(spec)
    assert "\n" not in str(caught.value) and "Give" in str(caught.value)


def test_a_run_records_both_answers_and_scores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([flat(i, n) for i, n in enumerate(subjects("eval")[:3])]))
    run = bench(
        tiny.shared("llava"), errata.editor("ft_l", steps=2), f"counterfact:{path}", "one_step",
        tmp_path / "run",
    )  # fmt: skip
    scores = json.loads((run / "scores.json").read_text())["metrics"]
    for kind in ("reliability", "t_generality", "near_locality"):
        assert scores[f"{kind}.probability"]["n"] == 3
    lines = (run / "answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert answers and all(a["contrast"]["ids"] != a["reference"]["ids"] for a in answers)
    with pytest.raises(SystemExit) as end:
        main(["data", "verify", f"counterfact:{path}"])
    assert end.value.code in (0, None) and "edits: 3" in capsys.readouterr().out


def test_a_completion_that_goes_on_is_an_answer_to_the_plan(tmp_path: Path) -> None:
    """The unedited model knows a fact, or a hop, where its answer begins with it."""
    (case,) = load(tmp_path / "m.json", [multi_hop(1, subjects("eval")[0])], "mquake:{}").cases
    begun, other = Scored((1, 2), (-1.0, -1.0), (1, 2)), Scored((3,), (-9.0,), (1,))
    goes_on = Answer(case.id, "", text="blue, of course", stopped=False)
    known = replace(goes_on, reference=other, contrast=begun)
    hop = replace(goes_on, reference=begun)
    answers = {(case.id, p.id): known for p in case.probes}
    hops = {(case.id, f"{p.id}/hop"): hop for p in case.probes}
    told = replace(case, origin="counterfactual")
    assert filter_cases([told], answers | hops) == ([told], [])
    unknown = replace(goes_on, reference=other, contrast=other)
    (kept,), skips = filter_cases([told], answers | dict.fromkeys(hops, unknown))
    assert [p.kind for p in kept.probes] == ["reliability", "t_generality"]
    assert {s.reason for s in skips} == {"the unedited model does not know the hop"}
    main = (case.id, "reliability")
    for answer, reason in ((unknown, "not the old answer"), (hop, "already says the target")):
        kept_cases, (skip,) = filter_cases([told], {**answers, **hops, main: answer})
        assert kept_cases == [] and reason in skip.reason


def test_a_far_question_has_answers_of_another_relation(tmp_path: Path) -> None:
    colours = [flat(i, n) for i, n in enumerate(subjects("eval")[:3])]
    towns = [
        {**flat(9 + i, n), "target_new": "Oslo", "ground_truth": "Rome",
         "locality_prompt": f"Town {n} is", "locality_ground_truth": "Rome"}
        for i, n in enumerate(subjects("train")[:3])
    ]  # fmt: skip
    found = load(tmp_path / "c.json", colours + towns, "counterfact:{}")
    far = [p for c in found.cases for p in c.probes if p.kind == "t_locality"]
    assert [(p.reference, p.contrast) for p in far] == [("Rome", "Oslo")] * 3
    joint = {**flat(20, subjects("train")[4]), "target_new": "Rome"}  # a colour beside a town
    found = load(tmp_path / "c.json", [*colours, *towns, joint], "counterfact:{}")
    assert not [p for c in found.cases for p in c.probes if p.kind == "t_locality"]
