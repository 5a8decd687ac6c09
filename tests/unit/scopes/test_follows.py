"""Scope `testimony`, with consequences: which questions follow from which edit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import errata
from errata.core.errors import BadSpec
from errata.core.state import State
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.scopes.testimony import TestimonyScope
from errata.scopes.testimony._follows import learn_follows, nearest
from errata.scopes.testimony._witness import Panel, Witness

SENSES = {"town?": 0, "city?": 0, "country?": 1, "land?": 1, "colour?": 2}
RING, DISC = Image("ring", "0" * 64), Image("disc", "1" * 64)


class Answers:
    """Answers by the sense of a question; stands for a witness with one question, two pictures."""

    panel = Panel(("shape?",), (Image("a"), Image("b")))

    def of(self, prompts: list[Prompt]) -> Tensor:
        rows = torch.zeros(len(prompts), 5, 4)
        for n, p in enumerate(prompts):
            rows[n, :, SENSES[p.text]] = 1.0
        return rows

    relations = Witness.relations


def probe(kind: str, text: str, image: Image = RING) -> Probe:
    return Probe(f"{kind}/{text}", Prompt.of(text, image), kind, reference="x")


def case(*probes: Probe) -> Case:
    edit = Edit(Prompt.of("town?", RING), "Mill", id="e")
    return Case("c", edit, (probe("reliability", "town?"), *probes))


def learnt(*cases: Case, kinds: tuple[str, ...] = ("portability",)) -> Any:
    witness: Any = Answers()
    return learn_follows(witness, list(cases), 8, kinds)


def table(tensors: dict[str, Tensor]) -> list[tuple[int, int]]:
    """(sense of the edit, sense of the question) that follow."""
    sense = tensors["relations"][:, 0].argmax(-1)
    return [(int(sense[a]), int(sense[b])) for a, b in tensors["follows"].nonzero().tolist()]


def test_the_country_follows_from_the_town_in_any_words_and_the_colour_does_not() -> None:
    tensors, said = learnt(
        case(
            probe("portability", "country?"),
            probe("portability", "land?"),
            probe("t_generality", "city?"),
            probe("near_locality", "colour?"),
        )
    )
    assert table(tensors) == [(0, 1)]
    assert [(SENSES[a], SENSES[b]) for a, b in said] == [(0, 1)]


def test_most_questions_decide_and_those_of_other_pictures_do_not_count() -> None:
    stays = probe("near_locality", "colour?")
    tensors, _ = learnt(case(stays, stays, probe("portability", "colour?")))
    assert table(tensors) == []
    elsewhere = probe("near_locality", "country?", DISC)
    tensors, _ = learnt(case(elsewhere, elsewhere, probe("portability", "country?")))
    assert table(tensors) == [(0, 1)]


def test_without_such_questions_nothing_is_learnt() -> None:
    assert learnt(case(probe("near_locality", "colour?"))) == ({}, [])
    assert learnt(case(probe("portability", "country?")), kinds=()) == ({}, [])


def test_a_question_that_is_like_no_other_belongs_to_no_relation() -> None:
    relations = torch.eye(4)[:2, None].repeat(1, 2, 1)
    asked = torch.stack([relations[1], torch.eye(4)[3].repeat(2, 1)])
    assert nearest(asked, relations).tolist() == [1, -1]


def scope(consequences: bool) -> TestimonyScope:
    """One question, two pictures, belief and answer; the country (1) follows from the town (0)."""
    weights = {"each": [2.0, 1.0, 1.0, 1.0, 1.0], "bias": 1.0, "threshold": 0.0, "rise": 0.0}
    meta = {"questions": ["shape?"], "pictures": [["a", None], ["b", None]], "weights": weights}
    tensors = {
        "relations": torch.eye(4)[:3, None].repeat(1, 2, 1),
        "follows": torch.tensor([[0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3]),
    }
    return TestimonyScope(State("scope testimony", meta, tensors), consequences=consequences)


def said(thing: int, relation: int) -> Tensor:
    """What is said of a question for a relation of a thing."""
    return torch.eye(4)[[thing, relation, relation, relation, relation]].flatten()


def test_a_question_that_follows_opens_for_the_same_thing_alone_and_says_so() -> None:
    keys = said(0, 0)[None]
    asked = torch.stack([said(0, 0), said(0, 1), said(0, 2), said(3, 1), said(3, 0)])
    one = scope(True)
    entry, score = one.nearest(asked, keys)
    assert one.opens(score).tolist() == [True, True, False, False, False]
    assert one.way(asked, keys[entry]).tolist()[:2] == [0, 1]
    plain = scope(False)
    score = plain.nearest(asked, keys)[1]
    assert plain.opens(score).tolist() == [True, False, False, False, False]
    assert plain.way(asked, keys[entry]).tolist() == [0] * 5


def test_a_state_that_does_not_know_what_follows_is_refused() -> None:
    backbone = errata.load("micro-vlm")
    known = scope(True).state
    assert known is not None
    old = State("scope testimony", known.meta, fingerprint=backbone.fingerprint())
    with pytest.raises(BadSpec, match="does not know which questions follow"):
        TestimonyScope(old, consequences=True).for_model(backbone)
    TestimonyScope(old).for_model(backbone)
