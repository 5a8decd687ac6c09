"""How much image tokens bear on a question: noise on one of them, seen at the last prompt token.

Source: VisEdit (Chen et al., AAAI 2025), its attribution of visual representations: at the input of
an attention module, Gaussian noise is added to one image token; its influence is 1 - cosine between
the module's clean and noisy output at the last prompt token. Every module is measured by itself:
behind it the stream goes on as if nothing had happened.

Shapes: N tokens looked at, T columns, d stream width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from errata.core.backbone import Backbone, Batch, Entered
from errata.core.patch import Patch
from errata.core.ports import Ctx


class _Noise(Patch):
    """Row 0 is clean; row 1 + n has noise at columns[n]. `influence[site]` [N] after a forward."""

    def __init__(
        self, sites: Sequence[str], columns: Tensor, last: int, sigma: float, rng: torch.Generator
    ) -> None:
        super().__init__(sites)
        self.columns, self.last, self.sigma, self.rng = columns, last, sigma, rng
        self.influence: dict[str, Tensor] = {}

    def before(self, site: str, x: Tensor, ctx: Ctx) -> Tensor:
        count = len(self.columns)
        noise = torch.randn(count, x.shape[-1], generator=self.rng).to(x) * self.sigma
        rows = torch.arange(1, count + 1, device=x.device)
        noisy = x.clone()
        noisy[rows, self.columns.to(x.device)] += noise
        return noisy

    def at(self, site: str, x: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        seen = y[:, self.last].float()
        self.influence[site] = 1 - torch.cosine_similarity(seen[1:], seen[:1], dim=-1)
        return y[:1].expand_as(y)

    def pack(self) -> NoReturn:
        raise AssertionError("noise is not an edit")

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NoReturn:
        raise AssertionError("noise is not an edit")


@torch.no_grad()
def noise_influence(
    backbone: Backbone,
    rows: Batch | Entered,
    columns: Tensor,
    *,
    layers: Sequence[int],
    sigma: float,
    draws: int,
    rng: torch.Generator,
) -> dict[int, Tensor]:
    """Layer -> [N] influence of the tokens at `columns` [N], the mean over `draws`.

    `rows` holds the same question 1 + N times (row 0 stays clean), without live patches.
    """
    batch = rows if isinstance(rows, Batch) else rows.batch
    assert batch.size == len(columns) + 1, (batch.size, len(columns))
    last = int(batch.lengths[0]) - 1
    sites = {i: f"text.{i}.attn" for i in layers}
    total: dict[int, Tensor] = {}
    for _ in range(draws):
        noise = _Noise(tuple(sites.values()), columns, last, sigma, rng)
        with backbone.applied(noise):
            backbone.logits(rows)
        for i, site in sites.items():
            total[i] = total.get(i, torch.zeros(())) + noise.influence[site].cpu() / draws
    return total
