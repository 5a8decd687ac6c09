"""Scope `testimony`: the choice of questions, the cut of a memory, the threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.state import State
from errata.core.types import Image, Prompt
from errata.scopes.testimony import TestimonyScope
from errata.scopes.testimony._choice import greedy, spread
from errata.scopes.testimony._fit import _rare, _tuned, agreement, cut
from errata.scopes.testimony._witness import Panel

SENSES = {"colour?": 0, "hue?": 0, "shape?": 1, "form?": 1, "town?": 2}


class Answers:
    """Answers by the sense of a question alone; stands for a witness with two fixed pictures."""

    panel = Panel((), (Image("a"), Image("b")))

    def of(self, prompts: list[Prompt]) -> Tensor:
        rows = torch.zeros(len(prompts), 3, 4)
        for n, p in enumerate(prompts):
            rows[n, :, SENSES[p.text]] = 1.0
        return rows


def test_the_pool_has_one_question_of_each_sense() -> None:
    witness: Any = Answers()
    chosen = spread(witness, list(SENSES), 5)
    assert sorted(SENSES[q] for q in chosen) == [0, 1, 2]
    assert len(spread(witness, list(SENSES), 2)) == 2


def test_a_question_that_tells_nothing_is_not_chosen() -> None:
    telling = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.9, 0.8, 0.1, 0.2])
    agreed = torch.stack([torch.full((8,), 0.5), telling], dim=1)
    same = telling > 0.5
    chosen, areas = greedy(agreed, same, torch.arange(8) < 4, 2)
    assert chosen == [1] and areas == [[1.0, 1.0]]


def test_one_disagreement_outweighs_all_agreements() -> None:
    same, other = torch.eye(4)[[0, 0, 0]], torch.eye(4)[[0, 0, 1]]
    agreed = agreement(torch.stack([same, other]), same[None])
    assert agreed[0].sum() == 0 and float(agreed[1].sum()) == pytest.approx(math.log(1e-3))


def test_the_cut_is_the_score_that_so_many_strange_questions_exceed() -> None:
    score = torch.arange(10_000).float()
    rare = _rare(score)
    assert cut(rare, 0.01) == pytest.approx(9899)
    assert cut(rare, 0.003) == pytest.approx(9970, abs=5)  # between two measured shares
    assert cut(rare, 1e-12) == rare[-1][1] and cut(rare, 0.5) == rare[0][1]
    assert cut([], 0.1) == -math.inf


def test_the_threshold_is_the_one_with_most_whole_cases() -> None:
    score = torch.tensor([3.0, 1.0, 2.9, 1.2, 2.0, -9.0])
    inside = torch.tensor([True, False] * 3)
    threshold, whole = _tuned(score, inside, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert whole == 1.0 and 1.2 < threshold <= 2.0


def learnt(**settings: Any) -> TestimonyScope:
    rare = [[0.1, -8.0], [0.01, -2.0], [0.001, 2.0]]
    weights = {"each": [1.0, 1.0], "bias": 1.0, "threshold": 0.5, "rare": rare}
    return TestimonyScope(State("scope testimony", {"weights": weights}), **settings)


def test_the_cut_grows_with_the_memory_and_is_of_each_lane() -> None:
    scope = learnt(false_open=0.1)
    assert [scope.penalty(k) for k in (1, 10, 100)] == [0.0, 0.0, pytest.approx(1.5)]
    assert learnt(false_open=1.0).penalty(10) == 0.0
    keys = torch.nn.functional.one_hot(torch.arange(200) % 3, 4).float().repeat(1, 2)
    asked = keys[:2]
    alone = scope.nearest(asked, keys[:100])[1]
    own = torch.zeros(2, 200, dtype=torch.bool)
    own[:, :100] = True
    torch.testing.assert_close(scope.nearest(asked, keys, own)[1], alone)
    assert bool((scope.nearest(asked, keys)[1] <= alone).all())


def test_a_share_outside_of_its_range_is_refused() -> None:
    with pytest.raises(BadSpec, match="share above 0"):
        learnt(false_open=0.0)
