"""Contrastive encoders of hidden states (UniKE Eq. 4 and 5).

Triplets (h_sem, h_pos, h_neg) are states of a question, of the question with its true answer, and
of the question with the model's own wrong answer. The semantic encoder brings both answers of one
question to that question; the truthfulness encoder brings true answers together, and wrong ones.

Differences from the printed equations: cosines are divided by a temperature (the paper says
only "similarity"; raw products overflow); the constant self-similarity is left out of Eq. 4; h_sem
is the fixed target space of Eq. 5, as printed, here minus its mean (`centre`), without which every
cosine in a residual stream is near one.

Shapes: n triplets of a batch, d width, e encoded width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from errata.networks.spaces import encode, unit

__all__ = [
    "EncoderSchedule",
    "TrainedEncoders",
    "encode",
    "semantic_loss",
    "train_encoder",
    "truth_loss",
    "unit",
]


@dataclass(frozen=True, kw_only=True)
class EncoderSchedule:
    """width: of hidden layers. patience: epochs without a better held-out loss before the stop."""

    width: int
    lr: float = 1e-4
    batch: int = 256
    epochs: int = 200
    patience: int = 20
    temperature: float = 0.1


@dataclass(frozen=True)
class TrainedEncoders:
    """Weights of the best epoch (see `errata.networks.spaces`), and the losses."""

    weights: dict[str, Tensor]
    epochs: int
    train_loss: float
    held_out_loss: float


def semantic_loss(anchor_nd: Tensor, pos_nd: Tensor, neg_nd: Tensor, temperature: float) -> Tensor:
    """Eq. 5: both encoded answers of a question against those of all others; mean over anchors."""
    anchor = unit(anchor_nd)
    s_pos, s_neg = (anchor @ unit(h).T / temperature for h in (pos_nd, neg_nd))
    own = torch.stack([s_pos.diagonal(), s_neg.diagonal()]).logsumexp(0)
    return (torch.cat([s_pos, s_neg], dim=1).logsumexp(1) - own).mean()


def truth_loss(pos_ne: Tensor, neg_ne: Tensor, temperature: float) -> Tensor:
    """Eq. 4: answers of one truth value against all, self excluded; mean over questions."""
    n = len(pos_ne)
    both = unit(torch.cat([pos_ne, neg_ne]))
    s = both @ both.T / temperature
    s = s.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=s.device), -math.inf)
    true = torch.arange(2 * n, device=s.device) < n
    same = s.masked_fill(true[:, None] != true[None], -math.inf)
    return (s.logsumexp(1) - same.logsumexp(1)).sum() / n


def train_encoder(
    states: Tensor,
    loss: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    train: Tensor,
    held_out: Tensor,
    out: int,
    schedule: EncoderSchedule,
    rng: torch.Generator,
) -> TrainedEncoders:
    """An encoder d -> width -> width -> out, trained on triplets by index.

    states [m, d]: give the standardisation of inputs. loss(encoder, index): of the triplets at
    `index`. Stops after `patience` epochs without a better held-out loss and keeps the best
    weights.
    """
    weights = _fresh(states, schedule.width, out, rng)
    learnt = [w.requires_grad_() for k, w in weights.items() if k[0] in "wb"]
    adam = torch.optim.Adam(learnt, lr=schedule.lr)

    def held_out_loss() -> float:
        with torch.no_grad():
            return float(loss(lambda h: encode(h, weights), held_out))

    best, kept, since, last = math.inf, weights, 0, math.nan
    epochs = 0
    while epochs < schedule.epochs and since < schedule.patience:
        epochs += 1
        order = train[torch.randperm(len(train), generator=rng)]
        total = 0.0
        batches = [b for b in torch.split(order, schedule.batch) if len(b) > 1]
        for index in batches:
            value = loss(lambda h: encode(h, weights), index)
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            adam.step()
            total += value.item()
        last, now = total / max(1, len(batches)), held_out_loss()
        since += 1
        if now < best:
            best, since = now, 0
            kept = {k: w.detach().clone() for k, w in weights.items()}
    return TrainedEncoders({k: w.detach() for k, w in kept.items()}, epochs, last, best)


def _fresh(states: Tensor, width: int, out: int, rng: torch.Generator) -> dict[str, Tensor]:
    """He-uniform weights, and the standardisation of `states`."""
    sizes = [states.shape[1], width, width, out]
    weights = {"mean": states.mean(0), "std": states.std(0).clamp(min=1e-6)}
    for i, (into, to) in enumerate(pairwise(sizes)):
        bound = math.sqrt(3 / into)
        weights[f"w{i}"] = (torch.rand(to, into, generator=rng) * 2 - 1) * bound
        weights[f"b{i}"] = torch.zeros(to)
    return weights
