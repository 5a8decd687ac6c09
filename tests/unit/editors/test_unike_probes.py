"""Ridge probes, answers alone and balanced accuracy against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from errata.editors.unike.probes import (
    answers_alone,
    balanced,
    by_answer,
    decisions,
    ridge_probe,
    shares,
)


def test_a_ridge_line_by_hand() -> None:
    """x = 0, 2 with labels -1, 1: mean 1, variance 1, covariance 1. With ridge r relative to the
    variance the weight is 1 / (1 + r), and the line passes through (mean x, mean y) = (1, 0).
    """
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([-1.0, 1.0])
    for ridge in (0.0, 0.25):
        weight = 1 / (1 + ridge)
        line = ridge_probe(x, y, ridge=ridge)
        assert line.tolist() == pytest.approx([weight, -weight])
        assert decisions(torch.tensor([[5.0]]), line).item() == pytest.approx(4 * weight)


def test_labels_need_not_be_balanced() -> None:
    """x = 0, 0, 3 with labels -1, -1, 1 is met exactly: y = 2 x / 3 - 1."""
    line = ridge_probe(
        torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([-1.0, -1.0, 1.0]), ridge=0
    )
    assert line.tolist() == pytest.approx([2 / 3, -1.0])


def test_more_features_than_states_and_constant_features() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(6, 40, generator=rng), torch.full((6, 3), 7.0)], dim=1)
    y = torch.tensor([1.0, -1, 1, -1, 1, -1])
    line = ridge_probe(x, y, ridge=1e-6)
    assert torch.equal(decisions(x, line).sign(), y)
    assert line[40:43].abs().max() < 1e-6
    assert ridge_probe(torch.zeros(4, 2), torch.tensor([1.0, 1, -1, -1])).tolist() == [0, 0, 0]


def test_answers_alone_by_hand() -> None:
    """Seen: red true twice and wrong once, blue wrong twice, green once each.

    Tested: (red, blue) both right; (blue, red) both wrong; (green, new) one half each.
    """
    seen = [("red", "blue"), ("red", "blue"), ("green", "red"), ("x", "green")]
    assert answers_alone(seen, [("red", "blue")]) == 1.0
    assert answers_alone(seen, [("blue", "red")]) == 0.0
    assert answers_alone(seen, [("green", "new")]) == 0.5
    assert answers_alone(seen, [("red", "blue"), ("blue", "red"), ("green", "new")]) == 0.5
    assert answers_alone(seen, []) == 0.0


def test_balanced_by_hand() -> None:
    """red: true in 0 and 1, wrong in 2; blue: wrong in 0, true in 2; x: wrong only.

    Each red-as-true weighs 1/2, all others of red and blue 1, x none: weight 1 + 1 + 1 + 1 = 4.
    Right: red-as-true in 0 only (1/2), blue-as-wrong (1), blue-as-true no, red-as-wrong (1).
    """
    answers = [("red", "blue"), ("red", "x"), ("blue", "red")]
    right_pos, right_neg = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    assert balanced(right_pos, right_neg, answers) == pytest.approx(2.5 / 4)


def test_knowing_the_answer_helps_nothing_when_balanced() -> None:
    """Whoever calls red true and blue wrong, whatever the question, is right half the time."""
    answers = [("red", "blue")] * 9 + [("blue", "red")] * 2
    right_pos = torch.tensor([float(t == "red") for t, _ in answers])
    right_neg = torch.tensor([float(w == "blue") for _, w in answers])
    assert balanced(right_pos, right_neg, answers) == pytest.approx(0.5)
    assert answers_alone(answers, answers) == pytest.approx(9 / 11)


def test_where_no_answer_is_both_there_is_no_balance() -> None:
    one = torch.ones(1)
    assert balanced(one, one, [("red", "blue")]) is None


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
