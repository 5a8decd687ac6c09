"""What answers alone would give, and how answers are weighted so that they give nothing."""

from __future__ import annotations

import pytest
import torch

from errata.finding.probe import answers_alone, balanced, by_answer, shares

SEEN = [("red", "blue"), ("red", "green"), ("blue", "red")]


def test_an_answer_is_what_it_was_more_often():
    right = by_answer(SEEN)
    assert (right("red", True), right("red", False)) == (1.0, 0.0), "true twice, wrong once"
    assert (right("green", True), right("green", False)) == (0.0, 1.0)
    assert right("blue", True) == right("never seen", False) == 0.5
    assert answers_alone(SEEN, [("red", "green"), ("green", "blue")]) == (1 + 1 + 0 + 0.5) / 4


def test_shares_make_every_answer_as_often_true_as_wrong():
    true, wrong = shares(SEEN)
    assert true == [0.5, 0.5, 1.0], "red is true twice and wrong once, so each counts half"
    assert wrong == [1.0, 0.0, 1.0], "green is never true, so it counts nothing"


def test_balanced_is_the_weighted_mean_of_marks():
    right_pos, right_neg = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    assert balanced(right_pos, right_neg, SEEN) == pytest.approx((0.5 + 0 + 1 + 0 + 0 + 1) / 4)
    assert balanced(right_pos[:1], right_neg[:1], SEEN[1:2]) is None
