"""Distances between two drawings, on tensors small enough to compute by hand."""

from __future__ import annotations

import math

import pytest
import torch

from errata.analyses.drift.distances import (
    ALL,
    OTHER,
    SUBJECT,
    four_way,
    mean_states,
    prompt_distances,
    shifts_between,
)
from errata.analyses.drift.trace import PICTURE, DrawingTrace

SUBJECT_BT = torch.tensor([[False, True, False, False], [False, True, True, False]])
MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])


def drawing(text, steps=None, pixels=None):
    """Two prompts of 3 and 4 tokens; one picture each, kept at two steps."""
    steps = torch.zeros(2, 2, 1, 3, 2) if steps is None else steps
    pixels = torch.zeros(2, 1, 1, 1, 3) if pixels is None else pixels
    return DrawingTrace({"tap": text}, MASK, {"blocks.0": steps}, (0.0, 0.5), pixels, [])


@pytest.fixture
def text():
    return torch.tensor(
        [[[1.0, 0], [3, 4], [0, 2], [9, 9]], [[0, 1], [1, 1], [2, 0], [0, 5]]], dtype=torch.float32
    )


def test_cosine_and_relative_change_of_the_subjects_tokens_and_the_others(text):
    other = text.clone()
    other[0, 1] = torch.tensor([4.0, 3])  # cos = 24/25, |change| = sqrt 2
    other[0, 3] = torch.tensor([-50.0, math.nan])  # padding counts nowhere
    found = shifts_between(
        drawing(text), SUBJECT_BT, drawing(other), SUBJECT_BT, None, aligned=True
    )
    subject = found["tap", -1, SUBJECT][0]
    assert subject.cosine == pytest.approx(1 - 24 / 25, abs=1e-6)
    assert subject.relative == pytest.approx(math.sqrt(2) / 5, abs=1e-6)
    assert subject.size == pytest.approx(math.sqrt(2), abs=1e-6) and subject.towards is None
    assert found["tap", -1, OTHER][0].cosine == 0.0 == found["tap", -1, OTHER][0].size
    whole = found["tap", -1, ALL][0]
    assert whole.cosine == pytest.approx((1 - 24 / 25) / 3, abs=1e-6)
    assert whole.relative == pytest.approx(math.sqrt(2) / math.sqrt(1 + 25 + 4), abs=1e-6)
    assert whole.size == pytest.approx(math.sqrt(2) / 3, abs=1e-6)
    assert found["tap", -1, SUBJECT][1].relative == 0.0


def test_equal_drawings_are_at_distance_zero_exactly(text):
    text = text + 0.1234567
    steps = torch.randn(2, 2, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    a, b = drawing(text, steps), drawing(text.clone(), steps.clone())
    for steps_ in shifts_between(a, SUBJECT_BT, b, SUBJECT_BT, None, aligned=True).values():
        assert all((s.cosine, s.relative, s.size) == (0.0, 0.0, 0.0) for s in steps_)


def test_the_direction_of_the_oracle(text):
    base = drawing(text)
    edit, oracle = text.clone(), text.clone()
    edit[0, 1] += torch.tensor([1.0, 0])
    oracle[0, 1] += torch.tensor([3.0, 3.0])
    goal = (drawing(oracle), SUBJECT_BT)
    found = shifts_between(base, SUBJECT_BT, drawing(edit), SUBJECT_BT, goal, aligned=True)
    assert found["tap", -1, SUBJECT][0].towards == pytest.approx(math.cos(math.pi / 4), abs=1e-6)
    assert found["tap", -1, ALL][0].towards == pytest.approx(math.cos(math.pi / 4), abs=1e-6)
    assert found["tap", -1, SUBJECT][1].towards is None, "what did not move has no direction"


def test_pictures_and_steps_are_compared_seed_by_seed(text):
    steps = torch.zeros(2, 2, 1, 3, 2)
    steps[..., 0] = 1.0
    moved = steps.clone()
    moved[1, 0, 0, 2] = torch.tensor([0.0, 1.0])  # one of three tokens turns by 90 degrees
    pixels = torch.ones(2, 1, 1, 1, 3)
    a, b = drawing(text, steps, pixels), drawing(text, moved, pixels * 0.5)
    found = shifts_between(a, SUBJECT_BT, b, SUBJECT_BT, None, aligned=True)
    assert found["blocks.0", 0, ALL][0].size == 0.0
    assert found["blocks.0", 1, ALL][0].cosine == pytest.approx(1 / 3, abs=1e-6)
    assert found["blocks.0", 1, ALL][0].relative == pytest.approx(math.sqrt(2 / 3), abs=1e-6)
    picture = found[PICTURE, -1, ALL][1]
    assert picture.relative == pytest.approx(0.5) and picture.cosine == pytest.approx(0, abs=1e-6)
    assert picture.size == pytest.approx(math.sqrt(3) / 2)


def test_prompts_of_other_wording_have_a_length_but_no_token_by_token_distance(text):
    found = shifts_between(
        drawing(text), SUBJECT_BT, drawing(text * 2), SUBJECT_BT, None, aligned=False
    )
    step = found["tap", -1, SUBJECT][0]
    assert (step.cosine, step.relative) == (None, None) and step.size == pytest.approx(5.0)


def test_spread_is_the_distance_between_prompts(text):
    found = dict(prompt_distances(drawing(text, pixels=torch.rand(2, 1, 1, 1, 3)), SUBJECT_BT))
    # means of the subject's tokens: (3, 4) and (1.5, 0.5)
    assert found["tap", -1, SUBJECT] == pytest.approx([math.hypot(1.5, 3.5)])
    assert found["blocks.0", 0, ALL] == [0.0] and len(found[PICTURE, -1, ALL]) == 1


def test_four_readings():
    fresh = torch.tensor([[3.0, 4.0]])
    edited, reasoned = fresh + torch.tensor([[1.0, 0]]), fresh + torch.tensor([[0.0, 2]])
    both = reasoned + torch.tensor([[3.0, 0]])
    (way,) = four_way(fresh, edited, reasoned, both)
    assert (way.edit, way.reason, way.later) == pytest.approx((0.2, 0.4, 0.6))
    assert way.both == pytest.approx(math.hypot(3, 2) / 5)
    assert way.edit_reason == pytest.approx(0.0) and way.edit_later == pytest.approx(1.0)
    (still,) = four_way(fresh, fresh, reasoned, reasoned)
    assert still.edit == 0 and still.edit_reason is None


def test_means_leave_out_padding(text):
    assert mean_states(drawing(text), "tap")[0].tolist() == pytest.approx([4 / 3, 2.0])
