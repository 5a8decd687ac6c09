"""unike_umm: the published schema with its traps, and the splits of the made-up world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.benchmarks.unike_umm import UnikeUmm, published, world
from errata.benchmarks.unike_umm.templates import TEMPLATES, reasoning_prompt, stated_rationale
from errata.core.errors import BadData
from errata.core.measure.benchmark import BenchmarkSpec, Loaded
from errata.core.text import mentions
from errata.core.types import Case
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS, fact
from tests.umm import record, write_records


def load(rows: list[Any], folder: Path, spec: str = "unike_umm:attribute@eval/published") -> Loaded:
    folder.mkdir(exist_ok=True)
    (folder / "UniKE.json").write_text(json.dumps(rows))
    return UnikeUmm().load(BenchmarkSpec.parse(spec), root=folder)


def one(row: dict[str, Any], folder: Path, task: str = "attribute") -> Case:
    loaded = load([row], folder, f"unike_umm:{task}@eval/published")
    (case,) = loaded.cases
    return case


def test_the_edit_is_stage_1_and_every_stage_is_asked(tmp_path: Path) -> None:
    case = one(record(0, (1, 2, 4)), tmp_path)
    assert case.edit.prompt.text == "The color of velm0 is"
    assert (case.edit.target, case.edit.old, case.edit.id) == ("green", "blue", case.id)
    kinds = [(p.kind, p.group) for p in case.probes]
    assert kinds == [
        (kind, stage)
        for stage in ("stage1", "stage2", "stage4")
        for kind in ("efficacy", "reasoning", "vqa")
    ]
    assert case.main == case.probes[0]
    assert {p.cap for p in case.probes if p.kind == "reasoning"} == {512}
    view = case.probes[2].view
    assert view is not None and (view.target, view.old) == ("green", "blue")


def test_the_subject_stays_as_it_stands_in_the_prompt(tmp_path: Path) -> None:
    row = record(1)
    row["subject"] = "Swimming Pool"
    row["stage_1"]["prompt"] = "The color of a swimming pool is"
    assert one(row, tmp_path).edit.subject == "swimming pool"
    row["subject"], row["stage_1"]["prompt"] = "art", "A party is about art and"
    case = one(row, tmp_path)
    assert case.edit.prompt.text == "A party is about art and"
    assert published.surface_form("Three ARTS of art", "art") == "art"  # a whole word first
    assert published.surface_form("Three ARTS", "art") == "ART"
    assert published.surface_form("C++ (new)", "c++ (NEW)") == "C++ (new)"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("{} was made by", "Velm9 was made by"),
        ("{{x}} of {} is", "{x} of Velm9 is"),
        ("Velm9 {{x}} is", "Velm9 {{x}} is"),  # no hole: as it is
        ("The velm9 is", "The velm9 is"),
    ],
)
def test_a_prompt_with_a_hole_is_filled(prompt: str, wanted: str, tmp_path: Path) -> None:
    row = {**record(9), "source": "relation", "category": "creator"}
    row["stage_1"]["prompt"] = prompt
    case = one({k: v for k, v in row.items() if k != "stage_2"}, tmp_path, "relation")
    assert case.edit.prompt.text == wanted
    assert case.probes[0].prompt == case.edit.prompt  # the same text is edited and tested
    assert case.edit.subject in wanted


def broken() -> list[tuple[Any, str]]:
    def without(key: str, stage: str = "stage_1") -> dict[str, Any]:
        row = record(0)
        row[stage] = {**row[stage], key: " "}
        return row

    gone = record(0)
    gone.pop("stage_1")
    return [
        ("a text", "no JSON object"),
        ({**record(0), "subject": ""}, "the subject is empty"),
        ({**record(0), "source": "other"}, "'other' is neither attribute nor relation"),
        (gone, "no stage_1"),
        ({**record(0), "stage_1": []}, "no stage_1"),
        (without("prompt"), "stage_1 has no prompt"),
        (without("gt_target"), "stage_1 has no gt_target"),
        ({**record(0), "subject": "Nobody"}, "not in the prompt"),
    ]


def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path: Path) -> None:
    rows = [row for row, _ in broken()]
    loaded = load([*rows, record(5)], tmp_path)
    assert [c.id for c in loaded.cases] == [f"attribute-{len(rows):05d}"]  # the file's own index
    whole = [s for s in loaded.skipped if s.id.startswith("row-")]
    assert len(whole) == len(rows)
    for skip, (_, why) in zip(whole, broken(), strict=True):
        assert why in skip.reason, (skip, why)


def test_a_stage_that_cannot_be_used_is_skipped_alone(tmp_path: Path) -> None:
    row = record(0, (1, 2, 3))
    row["stage_2"]["visual_target"] = ""
    row["stage_3"]["prompt"] = ""
    loaded = load([row], tmp_path)
    (case,) = loaded.cases
    assert {p.id for p in case.probes} == {
        *("efficacy/stage1", "reasoning/stage1", "vqa/stage1", "efficacy/stage2"),
        *("reasoning/stage3", "vqa/stage3"),
    }
    assert {(s.id, s.reason) for s in loaded.skipped} == {
        (f"{case.id}/vqa/stage2", "visual_target is empty"),
        (f"{case.id}/efficacy/stage3", "prompt is empty"),
    }


def test_of_a_relation_stage_1_is_read(tmp_path: Path) -> None:
    row = {**record(0), "source": "relation", "category": "location"}
    loaded = load([row], tmp_path, "unike_umm:relation@eval/published")
    assert {p.group for p in loaded.cases[0].probes} == {"stage1"}
    assert [s.reason for s in loaded.skipped] == [
        "of a relation only stage 1 is read, as published"
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [("{}", "no list"), ("[", "cannot be read"), ("\ud800", "cannot be read"), (None, "not there")],
)
def test_a_file_that_is_none(text: str | None, why: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "UniKE.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadData, match=why):
        UnikeUmm().load(BenchmarkSpec.parse("unike_umm:attribute"), root=tmp_path)


def test_splits_share_no_subject_and_what_should_stay_is_never_edited(tmp_path: Path) -> None:
    root = write_records(tmp_path, 120)
    split = {
        s: UnikeUmm().load(BenchmarkSpec.parse(f"unike_umm:attribute@{s}"), root=root).cases
        for s in ("train", "dev", "eval")
    }
    names = {s: {c.edit.subject for c in found} for s, found in split.items()}
    assert not names["train"] & names["eval"] and not names["dev"] & names["eval"]
    assert sum(map(len, split.values())) == 120
    trained = {c.edit.prompt for c in split["train"]}
    for case in split["eval"]:
        kept = [p for p in case.probes if p.kind in ("t_locality", "near_locality")]
        assert {p.kind for p in kept} == {"t_locality", "near_locality"}
        assert all(p.prompt in trained for p in kept)
        assert all(p.reference != case.edit.target for p in kept)
        assert sum(p.kind == "i_locality" for p in case.probes) == 2
    everything = UnikeUmm().load(
        BenchmarkSpec.parse("unike_umm:attribute@eval/published"), root=root
    )
    assert len(everything.cases) == 120
    assert not [p for c in everything.cases for p in c.probes if "locality" in p.kind]


def test_audit_counts_the_traps(tmp_path: Path) -> None:
    rows = [record(i) for i in range(4)]
    rows[0]["stage_1"]["image_prompt"] = "a green velm0"
    rows[1]["stage_1"]["prompt"] = "The color of {} is"
    (tmp_path / "UniKE.json").write_text(json.dumps([*rows, 7]))
    facts = UnikeUmm().audit(root=tmp_path)["UniKE.json"]
    assert (facts["rows"], facts["usable"]) == (5, 4)
    assert facts["subject in another case than in the prompt"] == 3
    assert facts["prompts with a hole"] == 1
    assert facts["image prompts that state the target"] == 1
    assert facts["left out"] == {"the row is no JSON object": 1}
    assert UnikeUmm().verify(root=tmp_path)["UniKE.json"]["unusable rows"] == 1
    with pytest.raises(BadData):
        UnikeUmm().verify(root=tmp_path / "nowhere")


def test_the_nine_templates_ask_for_the_fact_in_the_first_step_alone() -> None:
    assert len(TEMPLATES) == 9
    for category, template in TEMPLATES.items():
        text = reasoning_prompt(category, "Velm", "a photo of a velm")
        assert text.count("[Knowledge Recall]") == 2 and text.endswith("[Knowledge Recall]")
        assert text.count("[Visual Caption]") == 1
        assert [f"{i}. [" in text for i in range(1, 7)] == [True] * 5 + [False]
        assert "{" not in text and template.label in text
        assert mentions(stated_rationale(category, "Velm", "teal", "a velm"), "teal")
    assert "\n" not in reasoning_prompt("unknown", "Velm", "a velm")


# -- the made-up world --------------------------------------------------------------------------


def test_objects_are_dealt_once_and_by_whether_they_are_drawn() -> None:
    dealt = [o for s in ("train", "dev", "eval") for o in world.objects(s)]
    assert len(dealt) == len(set(dealt)) == len(OBJECTS)
    for split, share in (("train", 0.2), ("dev", 0.1), ("eval", 0.7)):
        for drawn in (True, False):
            have = sum(o.drawn == drawn for o in world.objects(split))
            whole = sum(o.drawn == drawn for o in OBJECTS)
            assert abs(have - share * whole) <= 2
    assert len(world.objects("eval")) >= 50  # a sequence of 50 edits, an object once


@pytest.mark.parametrize("split", ["train", "dev", "eval"])
def test_every_fact_is_edited_once_and_the_world_agrees(split: str) -> None:
    by_name = {o.name: o for o in OBJECTS}
    cases = world.cases(split, 0)
    assert len(cases) == len(world.objects(split)) * len(ATTRIBUTES)
    edited = {c.edit.subject for c in cases}
    for case in cases:
        thing, attribute = by_name[case.edit.subject or ""], case.asked
        assert case.edit.old == fact(thing, attribute) != case.edit.target
        assert case.edit.target in ATTRIBUTES[attribute]
        assert case.edit.subject in case.edit.prompt.text
        for p in case.probes:
            if p.kind in ("t_locality", "near_locality") and p.group != "same_subject":
                assert not edited & set(p.prompt.text.split()), (case.id, p.id)
            if p.group == "same_attribute" and p.kind == "near_locality":
                assert p.reference != case.edit.target


def test_what_is_tested_is_worded_apart_from_training() -> None:
    trained = {
        lang.caption(o.name, w, s)
        for o in OBJECTS
        for w in lang.wordings("caption")
        for s in lang.STAGE_OF
    }
    for case in world.cases("eval", 0):
        asked = {p.group: p for p in case.probes if p.kind == "vqa"}
        assert sorted(asked) == ["stage1", "stage2", "stage3", "stage4"]
        for p in asked.values():
            assert p.prompt.text not in trained
            assert p.aids is not None and "whose" in p.aids.oracle.text
        unseen = [p.prompt.text for p in case.probes if p.group == "unseen"]
        seen = [lang.question(case.asked, case.edit.subject or "", w)
                for w in lang.wordings(case.asked)]  # fmt: skip
        assert unseen and not set(unseen) & set(seen)
        assert case.edit.prompt.text in seen


def test_rationales_are_asked_for_the_picture_of_their_stage() -> None:
    case = world.cases("dev", 0)[0]
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        reasoning, vqa = (
            next(p for p in case.probes if p.kind == k and p.group == stage)
            for k in ("reasoning", "vqa")
        )
        assert vqa.prompt.text in reasoning.prompt.text
        assert vqa.aids is not None and vqa.aids.rationale.startswith("the ")
