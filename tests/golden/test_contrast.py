"""UniKE's Eq. 4 and 5 on two or three vectors, with the sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from errata.editors.unike.encoders import (
    EncoderSchedule,
    encode,
    semantic_loss,
    train_encoder,
    truth_loss,
    unit,
)

E = math.exp
DIAGONAL = 1 / math.sqrt(2)


def test_semantic_loss_by_hand() -> None:
    """Temperature 1; anchors (1, 0), (0, 2); lengths do not count.

    True answers (3, 0), (0, 1); wrong ones (0, 1), (1, 1). Cosines of anchor 1: 1, 0 to the true
    answers, 0, s to the wrong ones, s = 1 / sqrt(2); of anchor 2: 0, 1 and 1, s.
    """
    anchor = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    pos = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    neg = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    s = E(DIAGONAL)
    first = -math.log((E(1) + 1) / (E(1) + 1 + 1 + s))
    second = -math.log((E(1) + s) / (1 + E(1) + E(1) + s))
    found = semantic_loss(anchor, pos, neg, 1.0).item()
    assert found == pytest.approx((first + second) / 2, rel=1e-6)


def test_truth_loss_by_hand() -> None:
    """Temperature 1; true (1, 0), (1, 1); wrong (0, 1), (0, -1).

    Each against all but itself: true 1: s to true 2, then 0, 0; true 2: s, then s, -s;
    wrong 1: -1 to wrong 2, then 0, s; wrong 2: -1, then 0, -s. The sum over two questions.
    """
    pos = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    neg = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    s, m = E(DIAGONAL), E(-DIAGONAL)
    terms = [
        -math.log(s / (s + 1 + 1)),
        -math.log(s / (s + s + m)),
        -math.log(E(-1) / (E(-1) + 1 + s)),
        -math.log(E(-1) / (E(-1) + 1 + m)),
    ]
    assert truth_loss(pos, neg, 1.0).item() == pytest.approx(sum(terms) / 2, rel=1e-6)


def test_the_temperature_divides_cosines() -> None:
    """Anchor (1, 0) and (0, 1), both answers of each equal to it: cosines 1 and 0; t = 1/2."""
    eye = torch.eye(2)
    wanted = -math.log(2 * E(2) / (2 * E(2) + 2))
    assert semantic_loss(eye, eye, eye, 0.5).item() == pytest.approx(wanted, rel=1e-6)
    for scale in (0.01, 100.0):
        assert semantic_loss(scale * eye, eye, eye, 0.5).item() == pytest.approx(wanted, rel=1e-5)
        twice = truth_loss(scale * eye, -eye, 0.5).item()
        assert twice == pytest.approx(truth_loss(eye, -eye, 0.5).item(), rel=1e-5)


def test_a_perfect_truth_space_leaves_only_opposites() -> None:
    """True answers all (1, 0), wrong ones all (-1, 0), three of each, temperature t:
    each term is -log(2 e^(1/t) / (2 e^(1/t) + 3 e^(-1/t))), and two terms make a question.
    """
    pos = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    t = 0.5
    one = -math.log(2 * E(1 / t) / (2 * E(1 / t) + 3 * E(-1 / t)))
    assert truth_loss(pos, -pos, t).item() == pytest.approx(2 * one, rel=1e-5)


def test_the_truth_loss_does_not_know_which_is_which() -> None:
    rng = torch.Generator().manual_seed(0)
    pos, neg = torch.randn(2, 5, 3, generator=rng)
    swapped = truth_loss(neg, pos, 0.3).item()
    assert truth_loss(pos, neg, 0.3).item() == pytest.approx(swapped, rel=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert truth_loss(pos[order], neg, 0.3).item() == pytest.approx(swapped, rel=1e-5)


def test_encode_by_hand() -> None:
    """h = (3, 5), mean (1, 1), std (2, 4): (1, 1); w0 (1, 0) + 1 = 2 and (0, -1) = -1; GELU by
    the normal distribution's integral; w1 = (1, 10).
    """
    weights = {
        "mean": torch.tensor([1.0, 1.0]),
        "std": torch.tensor([2.0, 4.0]),
        "w0": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
        "b0": torch.tensor([1.0, 0.0]),
        "w1": torch.tensor([[1.0, 10.0]]),
        "b1": torch.tensor([0.5]),
    }

    def gelu(x: float) -> float:
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))

    for dtype in (torch.float32, torch.float16):
        half = {k: v.to(dtype) for k, v in weights.items()}
        found = encode(torch.tensor([3.0, 5.0]).to(dtype), half)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(gelu(2) + 10 * gelu(-1) + 0.5, rel=1e-6)


def test_unit_vectors() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


def test_training_finds_what_is_there_and_stops() -> None:
    """Truth is the sign of the first of eight features: the held-out loss nears its bound, which
    for n held-out questions of a perfect space is 2 log((n - 1 + n e^(-2 / t)) / (n - 1)).
    """
    rng = torch.Generator().manual_seed(0)
    n = 80
    noise = torch.randn(2, n, 8, generator=rng)
    noise[0, :, 0], noise[1, :, 0] = 3.0, -3.0
    pos, neg = noise
    train, held = torch.arange(60), torch.arange(60, n)
    schedule = EncoderSchedule(width=16, lr=5e-3, epochs=150, patience=10, temperature=0.5)

    def loss(run: object, index: Tensor) -> Tensor:
        assert callable(run)
        return truth_loss(run(pos[index]), run(neg[index]), 0.5)

    def trained() -> object:
        return train_encoder(
            torch.cat([pos, neg]), loss, train, held, 4, schedule, torch.Generator().manual_seed(1)
        )

    made, again = trained(), trained()
    bound = 2 * math.log((19 + 20 * E(-4)) / 19)
    untrained = 2 * math.log(39 / 19)
    assert made.held_out_loss == pytest.approx(bound, abs=0.1)
    assert made.held_out_loss < 0.3 * untrained
    assert made.epochs <= 150
    kept = loss(lambda h: encode(h, made.weights), held).item()
    assert kept == pytest.approx(made.held_out_loss, rel=1e-5)  # the best weights, not the last
    assert all(torch.equal(again.weights[k], w) for k, w in made.weights.items())
    assert not any(w.requires_grad for w in made.weights.values())
    torch.testing.assert_close(made.weights["mean"], torch.cat([pos, neg]).mean(0))
