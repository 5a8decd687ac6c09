"""Small latent memories with random numbers, for tests of the `latent` shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.patches.latent import BlockMemory, Latent, LatentSettings, SharedMemory
from tests import tiny

LAYERS = (1, 2, 3)


def encoder(width: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Near the identity (gelu(x) - gelu(-x) = x), so that alpha is well above 0; none is zero."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return {
        "mean": torch.randn(width, generator=rng) * 0.1,
        "std": torch.rand(width, generator=rng) + 0.5,
        "w0": both + torch.randn(2 * width, width, generator=rng) * 0.1,
        "b0": torch.randn(2 * width, generator=rng) * 0.1,
        "w1": both.T + torch.randn(width, 2 * width, generator=rng) * 0.1,
        "b1": torch.randn(width, generator=rng) * 0.1,
    }


def knowledge(
    backbone: tiny.HfVlm, entries: int = 12, seed: int = 0, layers: Sequence[int] = LAYERS
) -> SharedMemory:
    rng = torch.Generator().manual_seed(seed)
    d = backbone.width
    blocks = {}
    for i in layers:
        sem, other = torch.randn(2, entries, d, generator=rng)
        pos = sem + 0.7 * other
        blocks[i] = BlockMemory(sem, pos, encoder(d, rng), sem.mean(0))
    return SharedMemory(f"knowledge {seed}", blocks)


def latent(
    backbone: tiny.HfVlm,
    known: SharedMemory,
    entries: int = 2,
    seed: int = 1,
    **options: Any,
) -> Latent:
    """A patch with own entries; its options are K = 4 and a fixed alpha unless given."""
    rng = torch.Generator().manual_seed(1000 + seed)
    layers, d = list(known.blocks), backbone.width
    own = {}
    for i in layers:
        sem, other = torch.randn(2, entries, d, generator=rng)
        own[i] = (sem, sem + 0.7 * other)
    heads = {i: backbone.heads(i) for i in layers}
    return Latent(known, heads, own, LatentSettings(**{"top": 4, "alpha": 0.5, **options}))
