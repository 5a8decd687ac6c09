"""The weights of the agreements: a logistic regression whose weights are not negative.

Shapes: n pairs of a question and an edit, F agreements (Q + R + 1, the fixed pictures' as one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from errata.core.types import Case
from errata.scopes._cases import INSIDE, Labelled
from errata.scopes.testimony._witness import Witness

SHRINK = 1e-4  # weight of the squared weights in the loss


def fit(witness: Witness, cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"each": a weight per part of `Witness.of`, "bias"}, what came of it on these cases).

    In scope: the probes that should get the target. Out of scope: the locality probes of a case,
    and for every probe the most similar edit of a case about something else. All kinds weigh alike.
    """
    asked = Labelled.of(cases)
    edits, probes = witness.of(asked.edits), witness.of(asked.asked)
    features = _features(witness, (probes * edits[asked.of_case]).sum(-1))
    kinds = [p.kind for p in asked.probes]
    other, at = _others(cases, asked, edits, probes)
    rest = _features(witness, (probes[at] * edits[other]).sum(-1))
    features = torch.cat([features, rest])
    kinds += ["other"] * len(rest)
    inside = torch.tensor([k in INSIDE for k in kinds]).float()
    share = torch.tensor([1.0 / kinds.count(k) for k in kinds])
    for side in (inside, 1 - inside):
        share = torch.where(side.bool(), share / (share * side).sum().clamp(min=1e-9), share)
    weights, bias = _logistic(features, inside, share)
    score = features @ weights + bias
    right = ((score >= 0) == inside.bool()).float()
    accuracy = {
        k: round(float(right[[i for i, other in enumerate(kinds) if other == k]].mean()), 4)
        for k in dict.fromkeys(kinds)
    }
    count, fixed = len(witness.panel.questions), len(witness.panel.pictures)
    each = [*weights[:count].tolist(), *[float(weights[count]) / fixed] * fixed, float(weights[-1])]
    return {"each": each, "bias": float(bias)}, {"accuracy": accuracy}


def _features(witness: Witness, agreed: Tensor) -> Tensor:
    """[n, Q + 2]: testimonies, the mean over the fixed pictures, the belief."""
    count = len(witness.panel.questions)
    relation = agreed[:, count:-1].mean(1, keepdim=True)
    return torch.cat([agreed[:, :count], relation, agreed[:, -1:]], dim=1)


def _others(
    cases: Sequence[Case], asked: Labelled, edits: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """([n] an edit of another case, [n] the probe that is compared with it)."""
    things = [dict(c.scope) for c in cases]
    apart = torch.tensor([[_apart(cases, things, a, b) for b in range(len(cases))]
                          for a in range(len(cases))])  # fmt: skip
    near = probes.flatten(1) @ edits.flatten(1).T
    near = near.masked_fill(~apart[asked.of_case], -torch.inf)
    best, index = near.max(1)
    at = best.isfinite().nonzero()[:, 0]
    return index[at], at


def _apart(cases: Sequence[Case], things: Sequence[dict[str, str]], a: int, b: int) -> bool:
    """Whether two cases are about different things, as far as the benchmark says."""
    shared = things[a].keys() & things[b].keys()
    if shared:
        return any(things[a][k] != things[b][k] for k in shared)
    return a != b and cases[a].edit.prompt != cases[b].edit.prompt


@torch.enable_grad()
def _logistic(x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [F], not negative, and the bias."""
    raw = torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    x, y, share = x.double(), y.double(), share.double()
    solver = torch.optim.LBFGS([raw, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        weights = softplus(raw)
        value = binary_cross_entropy_with_logits(x @ weights + bias, y, share, reduction="sum")
        value = value + SHRINK * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return softplus(raw).detach().float(), bias.detach().float()
