"""Scope `subject`: which edit a question names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import errata
from errata.core.errors import BadEdit, BadSpec
from errata.core.types import Edit, Prompt

PARIS = Edit("The mayor of Paris is", "Ann", "Paris")
HILTON = Edit("The job of Paris Hilton is", "cook", "Paris Hilton")
RIVER = Edit("The river of Paris is called", "the Po", "Paris")
TOKYO = Edit("東京の市長は", "Ann", "東京")


def chosen(edits: list[Edit], *questions: str, **settings: Any) -> list[int | None]:
    """The edit that each question belongs to."""
    scope: Any = errata.scope("subject", **settings)
    keys = scope.keys(None, edits)
    entry, score = scope.nearest(scope.query(None, [Prompt.of(q) for q in questions]), keys)
    opens = scope.opens(score)
    return [int(e) if o else None for e, o in zip(entry, opens, strict=True)]


def test_the_subject_is_found_as_whole_words_in_any_case() -> None:
    edits = [PARIS, TOKYO]
    asked = ("who runs PARIS?", "Paris's mayor", "What of Parisians?", "", "東京は大きい")
    assert chosen(edits, *asked) == [0, 0, None, None, 1]


def test_the_longer_subject_counts() -> None:
    assert chosen([PARIS, HILTON], "Where does Paris Hilton live?", "And Paris?") == [1, 0]
    assert chosen([HILTON, PARIS], "Where does Paris Hilton live?", "Hilton, Paris") == [0, 1]


def test_of_one_subject_the_nearest_question_counts() -> None:
    edits = [RIVER, PARIS]
    assert chosen(edits, "Which river is in Paris?", "Paris has a mayor") == [0, 1]


def test_a_share_of_the_words_can_be_asked_for() -> None:
    asked = "The river of Paris is", "The mayor of Paris is", "The mayor of Rome is"
    assert chosen([PARIS], *asked, words=1.0) == [None, 0, None]
    assert chosen([PARIS], *asked, words=0.7) == [0, 0, None]


def test_the_same_edit_is_replaced_and_another_of_its_subject_is_not() -> None:
    scope = errata.scope("subject")
    old: Any = scope.keys(None, [RIVER, PARIS])  # type: ignore[arg-type]
    new = scope.keys(None, [Edit("The mayor of Paris is", "Bob", "Paris")])  # type: ignore[arg-type]
    assert scope.replaced(old, new).tolist() == [False, True]
    joined = scope.join([old, new])
    assert torch.equal(joined[2], joined[1])


def test_what_is_refused() -> None:
    for edit in (Edit("Who?", "Ann"), Edit("Who is it?", "Ann", "Paris"), Edit("Who?", "Ann", "?")):
        with pytest.raises(BadEdit, match="needs a subject of 1 to 16 words that stands in"):
            errata.scope("subject").keys(None, [edit])  # type: ignore[arg-type]
    with pytest.raises(BadSpec, match=r"words=1.5 is not a share"):
        errata.scope("subject", words=1.5)
