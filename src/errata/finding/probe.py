"""How well a line tells two kinds of states apart: ridge probes, and what answers alone would give.

A probe that was trained on states of true and wrong answers may have learnt which answers tend to
be true. `answers_alone` is what such a probe can reach, and `balanced` weighs every answer equally
as a true and as a wrong one, so that knowing the answer helps nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def ridge_probe(x: Tensor, y: Tensor, *, ridge: float = 1e-2) -> Tensor:
    """[d + 1] weights and bias of a least-squares line for labels y [n] of -1 and 1.

    x [n, d]; `ridge` is relative to the mean variance of the features.
    """
    mean, x64 = x.double().mean(0), x.double()
    centred = x64 - mean
    gram = centred.T @ centred / len(x)
    gram += ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    middle = y.double().mean()
    weight = torch.linalg.solve(gram, centred.T @ (y.double() - middle) / len(x))
    return torch.cat([weight, (middle - mean @ weight)[None]]).to(x.dtype)


def decisions(x: Tensor, probe: Tensor) -> Tensor:
    """[n] signed values of the line; positive means the label 1."""
    return x @ probe[:-1] + probe[-1]


def answers_alone(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> float:
    """Accuracy of telling (true, wrong) answers apart by how often each was which in `train`."""
    true, wrong = Counter(t for t, _ in train), Counter(w for _, w in train)

    def right(answer: str, label: int) -> float:
        lead = true[answer] - wrong[answer]
        return 0.5 if lead == 0 else float((lead > 0) == (label > 0))

    marks = [right(t, 1) for t, _ in test] + [right(w, -1) for _, w in test]
    return sum(marks) / max(1, len(marks))


def balanced(
    right_pos: Tensor, right_neg: Tensor, answers: Sequence[tuple[str, str]]
) -> float | None:
    """Accuracy with every answer weighted equally as true and as wrong; None where none is both.

    right_pos, right_neg: [n] 1 where the state of the true, of the wrong answer was told right.
    """
    true, wrong = Counter(t for t, _ in answers), Counter(w for _, w in answers)
    total = weight = 0.0
    for i, (t, w) in enumerate(answers):
        for answer, mark, own in ((t, right_pos[i], true), (w, right_neg[i], wrong)):
            share = min(true[answer], wrong[answer]) / own[answer]
            total += share * mark.item()
            weight += share
    return total / weight if weight else None
