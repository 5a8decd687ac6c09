"""How well a line tells two kinds of states apart: ridge probes, and what answers alone would give.

A probe that was trained on states of true and wrong answers may have learnt which answers tend to
be true. `answers_alone` is what such a probe can reach, and `balanced` weighs every answer equally
as a true and as a wrong one, so that knowing the answer helps nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

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
    right = by_answer(train)
    marks = [right(t, True) for t, _ in test] + [right(w, False) for _, w in test]
    return sum(marks) / max(1, len(marks))


def by_answer(train: Sequence[tuple[str, str]]) -> Callable[[str, bool], float]:
    """(answer, whether it is true) -> 1 where the answers of `train` tell that, else 0.

    An answer is called what it was more often; half where it was both equally often, or never.
    """
    true, wrong = Counter(t for t, _ in train), Counter(w for _, w in train)

    def right(answer: str, truth: bool) -> float:
        lead = true[answer] - wrong[answer]
        return 0.5 if lead == 0 else float((lead > 0) == truth)

    return right


def balanced(
    right_pos: Tensor, right_neg: Tensor, answers: Sequence[tuple[str, str]]
) -> float | None:
    """Accuracy with every answer weighted equally as true and as wrong; None where none is both.

    right_pos, right_neg: [n] 1 where the state of the true, of the wrong answer was told right.
    """
    share_pos, share_neg = (torch.tensor(s, dtype=torch.float64) for s in shares(answers))
    weight = (share_pos.sum() + share_neg.sum()).item()
    total = (share_pos @ right_pos.double() + share_neg @ right_neg.double()).item()
    return total / weight if weight else None


def shares(answers: Sequence[tuple[str, str]]) -> tuple[list[float], list[float]]:
    """Weights of the true and of the wrong answers by which each answer is as often both."""
    true, wrong = Counter(t for t, _ in answers), Counter(w for _, w in answers)
    both = {a: min(true[a], wrong[a]) for a in {*true, *wrong}}
    return [both[t] / true[t] for t, _ in answers], [both[w] / wrong[w] for _, w in answers]
