"""The next token of one answer: greedy, or drawn with a temperature and a nucleus.

Shapes: V vocabulary.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0: the likeliest token. top_p: the smallest set of tokens with this share of the
    probability. seed: None = another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Draws from logits [V]; one per answer, so that a batch does not change what is drawn."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        seed = sampling.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(7), "big")
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def draw(self, logits_V: Tensor) -> int:
        if self.greedy:
            return int(logits_V.argmax())
        # shifted first: a small temperature must not overflow
        scaled = (
            logits_V.float().cpu().double() - float(logits_V.max())
        ) / self.sampling.temperature
        share, order = scaled.softmax(-1).sort(descending=True, stable=True)
        before = share.cumsum(-1) - share
        share = share * (before < self.sampling.top_p)  # the first token always stays
        level = torch.rand((), generator=self.generator, dtype=torch.double) * share.sum()
        place = int(torch.searchsorted(share.cumsum(-1), level, right=True))
        return int(order[min(place, int((share > 0).sum()) - 1)])


def likeliest(logits_V: Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """(log-probability of `token`, the `top` likeliest tokens with theirs), before temperature."""
    logp = logits_V.float().log_softmax(-1)
    best = logp.topk(min(top, len(logp)))
    pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return float(logp[token]), pairs
