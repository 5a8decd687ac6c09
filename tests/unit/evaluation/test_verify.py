"""`errata.verify`: patches asked together, and the other questions of their facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import errata
from errata.core.errors import BadData, BadPatch
from errata.core.patch import Patch, pack, unpack
from errata.core.types import Edit
from errata.editors.ft_l import FtL
from tests import tiny

TEXT = "What is Fact 3?"


@pytest.fixture(scope="module")
def model() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def facts(pictures: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    first = {"prompt": "What is the colour of the thing?", "image": pictures[0], "target": "green",
             "rephrase": "Is it red or blue?",
             "locality": [TEXT, {"prompt": "Which shape?", "image": pictures[1]}]}  # fmt: skip
    second = {"prompt": "Which shape?", "image": pictures[1], "target": "red"}
    path.write_text("\n".join(map(json.dumps, (first, second))))
    return path


@pytest.fixture(scope="module")
def edits(facts: Path) -> list[Edit]:
    return errata.read_edits(str(facts))


@pytest.fixture(scope="module")
def patches(model: tiny.HfVlm, edits: list[Edit]) -> list[Patch]:
    found: list[Patch] = []
    for edit in edits:
        with model.applied(*found):
            found.append(FtL().edit(model, edit).patch)
    return found


def test_patches_are_asked_together(
    model: tiny.HfVlm, edits: list[Edit], patches: list[Patch]
) -> None:
    checks = errata.verify(model, patches)
    with model.applied(*patches):
        said = [a.text for a in errata.ask(model, [e.prompt for e in edits], cap=9)]
    assert [c.edit for c in checks] == edits
    assert [c.kept for c in checks] == [s == e.target for s, e in zip(said, edits, strict=True)]
    (alone,) = errata.verify(model, patches[0])
    assert (alone.edit, alone.kept) == (edits[0], True)
    assert str(alone) == "'What is the colour of the thing?' is answered 'green'"


def test_other_questions_are_compared_with_the_target_or_the_answer_without_patches(
    model: tiny.HfVlm, patches: list[Patch], facts: Path
) -> None:
    """A question that another of the patches edits is not asked as locality."""
    checks = errata.verify(model, patches, facts)
    assert [c.probe.kind for c in checks[2:]] == ["t_generality", "t_locality"]
    rephrased, far = checks[2:]
    with model.applied(*patches):
        said = [a.text for a in errata.ask(model, [rephrased.probe.prompt, TEXT], cap=9)]
    assert (rephrased.wanted, rephrased.kept) == ("green", said[0] == "green")
    before = errata.ask(model, TEXT, cap=8)[0].text
    assert far.wanted == before
    assert far.kept == (said[1] == before)


def test_without_the_other_patch_its_question_is_locality_again(
    model: tiny.HfVlm, patches: list[Patch], facts: Path
) -> None:
    kinds = [c.probe.kind for c in errata.verify(model, patches[0], facts)]
    assert kinds == ["reliability", "t_generality", "t_locality", "m_locality"]


def test_wrong_arguments_are_refused(
    model: tiny.HfVlm, patches: list[Patch], tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Another question?", "target": "red"}))
    with pytest.raises(BadData, match="none of the 2 facts"):
        errata.verify(model, patches, other)
    for wrong in ([], ["fixes/ring"]):
        with pytest.raises(BadPatch, match="a list of patches"):
            errata.verify(model, wrong)  # type: ignore[arg-type]


def test_a_patch_that_names_no_facts_is_asked_those_of_the_file(
    model: tiny.HfVlm, facts: Path, edits: list[Edit], patches: list[Patch]
) -> None:
    """As an adapter of somebody else, which has no edits."""
    bare = unpack(*pack(patches[0])).with_header(patches[0].header, ())
    checks = errata.verify(model, bare, facts)
    assert [c.edit.target for c in checks if c.probe.kind == "reliability"] == ["green", "red"]
    assert errata.verify(model, bare) == []
