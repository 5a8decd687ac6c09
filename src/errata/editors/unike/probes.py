"""Linear (ridge) probes that separate two kinds of states, and controls for the answers.

A probe trained on states of true and wrong answers may have learned which answers are often true.
`answers_alone` is the accuracy of a rule that knows only this; `balanced` weighs every answer
equally as a true and as a wrong one, so that the rule would get one half.
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
    """[n] values of the probe; positive means label 1."""
    return x @ probe[:-1] + probe[-1]


def answers_alone(train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]) -> float:
    """Accuracy on `test` pairs (true, wrong) of a rule that knows the answers of `train` only."""
    right = by_answer(train)
    marks = [right(t, True) for t, _ in test] + [right(w, False) for _, w in test]
    return sum(marks) / max(1, len(marks))


def by_answer(train: Sequence[tuple[str, str]]) -> Callable[[str, bool], float]:
    """The rule: (answer, whether it is true) -> 1 if it is right, else 0.

    It calls an answer what it was more often in `train`; 0.5 for a tie, or an answer not in
    `train`.
    """
    true, wrong = Counter(t for t, _ in train), Counter(w for _, w in train)

    def right(answer: str, truth: bool) -> float:
        lead = true[answer] - wrong[answer]
        return 0.5 if lead == 0 else float((lead > 0) == truth)

    return right


def balanced(
    right_pos: Tensor, right_neg: Tensor, answers: Sequence[tuple[str, str]]
) -> float | None:
    """Accuracy with every answer weighted equally as true and as wrong; None if none is both.

    right_pos, right_neg: [n] 1 where the probe is right on the state of the true, the wrong answer.
    """
    share_pos, share_neg = (torch.tensor(s, dtype=torch.float64) for s in shares(answers))
    weight = (share_pos.sum() + share_neg.sum()).item()
    total = (share_pos @ right_pos.double() + share_neg @ right_neg.double()).item()
    return total / weight if weight else None


def shares(answers: Sequence[tuple[str, str]]) -> tuple[list[float], list[float]]:
    """Weights of the true and the wrong answers with which each answer is equally often both."""
    true, wrong = Counter(t for t, _ in answers), Counter(w for _, w in answers)
    both = {a: min(true[a], wrong[a]) for a in {*true, *wrong}}
    return [both[t] / true[t] for t, _ in answers], [both[w] / wrong[w] for _, w in answers]
