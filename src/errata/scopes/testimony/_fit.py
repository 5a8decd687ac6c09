"""The weights of the agreements, and from which score on an edit opens.

Shapes: P probes, K edits, n pairs of a question and an edit, F agreements (Q + 3: the fixed
pictures' are one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from errata.core.types import Case
from errata.scopes._cases import INSIDE, Labelled
from errata.scopes.testimony._witness import LEAST, Witness

SHRINK = 1e-4  # weight of the squared weights in the loss
ROUNDING = 1e-3
CUTS = tuple(k / 4 for k in range(-16, 25))


def fit(witness: Witness, cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"each": weights of the parts of `Witness.of`, "bias", "threshold", "rise"}, and the shares
    of the questions and of whole cases that these decide rightly: each alone, and all in a memory).

    In scope: the probes that should get the target. Out of scope: the locality probes of a case,
    and for every probe the most similar edit of a case about something else. All kinds weigh alike.
    """
    asked = Labelled.of(cases)
    edits, probes = witness.of(asked.edits), witness.of(asked.asked)
    agreed = _features(witness, agreement(probes, edits))
    own = agreed[torch.arange(len(probes)), asked.of_case]
    other, at = _others(cases, asked, agreed.sum(-1))
    features = torch.cat([own, agreed[at, other]])
    kinds = [*(p.kind for p in asked.probes), *["other"] * len(at)]
    inside = torch.tensor([k in INSIDE for k in kinds]).float()
    share = torch.tensor([1.0 / kinds.count(k) for k in kinds])
    for side in (inside, 1 - inside):
        share = torch.where(side.bool(), share / (share * side).sum().clamp(min=1e-9), share)
    weights, bias = _logistic(features, inside, share)
    score = features @ weights + bias
    mine = inside[: len(own)].bool()
    always = torch.ones_like(mine)
    threshold, whole = _tuned(score[: len(own)], always, mine, asked.of_case)
    threshold = min(threshold, float(bias) - ROUNDING)  # an edit opens for its own question
    raised, whole_of_all = _tuned(*_in_memory(asked, agreed @ weights + bias), mine, asked.of_case)
    rise = max(raised - threshold, 0.0) / math.log10(max(len(cases), 10))
    right = ((score >= threshold) == inside.bool()).float()
    accuracy = {
        k: round(float(right[[i for i, other in enumerate(kinds) if other == k]].mean()), 4)
        for k in dict.fromkeys(kinds)
    }
    count, fixed = len(witness.panel.questions), len(witness.panel.pictures)
    relation = [float(weights[count]) / fixed] * fixed
    each = [*weights[:count].tolist(), *relation, *weights[-2:].tolist()]
    learnt = {"each": each, "bias": float(bias), "threshold": threshold, "rise": rise}
    return learnt, {"accuracy": accuracy, "whole": [whole, whole_of_all]}


def _tuned(score: Tensor, found: Tensor, inside: Tensor, of_case: Tensor) -> tuple[float, float]:
    """(the cut with which most cases are right in all their questions, their share).

    A question in scope is right if it opens the edit that it is about (`found`), one out of scope
    if it opens none. Of equally good cuts the one in the middle.
    """
    cases = set(of_case.tolist())
    shares = []
    for at in CUTS:
        opens = score >= at
        wrong = torch.where(inside, ~(opens & found), opens)
        shares.append(1 - len(set(of_case[wrong].tolist())) / len(cases))
    best = [n for n, share in enumerate(shares) if share == max(shares)]
    return CUTS[best[len(best) // 2]], round(max(shares), 4)


def agreement(asked: Tensor, edits: Tensor, *, pairs: bool = False) -> Tensor:
    """[P, K, parts] log of how far the answers to two prompts agree, part by part; 0 = equal.

    pairs: [P, parts] instead, of prompts that belong together one by one.
    """
    agreed = torch.einsum("bpm,bpm->bp" if pairs else "bpm,kpm->bkp", asked, edits)
    return agreed.clamp(LEAST, 1.0).log()


def _features(witness: Witness, agreed: Tensor) -> Tensor:
    """[..., Q + 3]: testimonies, the mean over the fixed pictures, belief and whole answer."""
    count = len(witness.panel.questions)
    relation = agreed[..., count:-2].mean(-1, keepdim=True)
    return torch.cat([agreed[..., :count], relation, agreed[..., -2:]], dim=-1)


def _in_memory(asked: Labelled, score: Tensor) -> tuple[Tensor, Tensor]:
    """([P] score of the nearest edit of all cases, [P] whether it is the probe's own).

    Edits of other cases that rightly answer a question too are left out.
    """
    states = [set(c.states) for c in asked.cases]
    friends = torch.tensor(
        [
            [k != own and not states[k].isdisjoint(p.depends_on) for k in range(len(states))]
            for p, own in zip(asked.probes, asked.of_case.tolist(), strict=True)
        ]
    )
    best, index = score.masked_fill(friends, -torch.inf).max(1)
    return best, index == asked.of_case


def _others(cases: Sequence[Case], asked: Labelled, near: Tensor) -> tuple[Tensor, Tensor]:
    """([n] the nearest edit about something else, [n] the probe that is compared with it)."""
    things = [dict(c.scope) for c in cases]
    apart = torch.tensor([[_apart(cases, things, a, b) for b in range(len(cases))]
                          for a in range(len(cases))])  # fmt: skip
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
