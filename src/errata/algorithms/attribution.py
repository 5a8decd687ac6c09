"""Influence of image tokens on a question, measured with noise at the last prompt token.

Source: VisEdit (Chen et al., AAAI 2025), its attribution of visual representations: at the input of
an attention module, Gaussian noise is added to image tokens; their influence is 1 - cosine between
the module's clean and noisy output at the last prompt token. Every module is measured alone: its
noisy output is replaced by the clean one, so that later modules are not affected.

Shapes: N places (an image token, or a window of them), T columns, d stream width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.recorder import EnoughRecorded, run_until_enough


class NoiseTrace(Hook):
    """One row in the model, 1 + N rows in the modules: row 0 is clean, row 1 + n has noise at
    places[n]. `influence[site]` [N] after a forward.
    """

    def __init__(
        self,
        sites: Sequence[str],
        places: Sequence[Tensor],
        last: int,
        sigma: float,
        rng: torch.Generator,
    ) -> None:
        super().__init__(sites)
        self.last, self.sigma, self.rng = last, sigma, rng
        sizes = torch.tensor([len(p) for p in places])
        self.noisy_rows = torch.arange(1, len(places) + 1).repeat_interleave(sizes)
        self.columns = torch.cat([p.cpu() for p in places])
        self.influence: dict[str, Tensor] = {}

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        noise = torch.randn(len(self.columns), x.shape[-1], generator=self.rng) * self.sigma
        noisy = x.repeat(int(self.noisy_rows[-1]) + 1, 1, 1)
        noisy[self.noisy_rows.to(x.device), self.columns.to(x.device)] += noise.to(x)
        return noisy

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        out = y[:, self.last].float()
        self.influence[site] = 1 - torch.cosine_similarity(out[1:], out[:1], dim=-1)
        if self.sites <= self.influence.keys():
            raise EnoughRecorded
        return y[:1]


@torch.no_grad()
def noise_influence(
    backbone: Backbone,
    question: Batch | PrefixState,
    places: Sequence[Tensor],
    *,
    layers: Sequence[int],
    sigma: float,
    draws: int,
    rng: torch.Generator,
) -> dict[int, Tensor]:
    """Layer -> [N] influence of places (columns of image tokens each), the mean over `draws`.

    `question` is one row, and only the attention modules see it 1 + N times; no patch is applied.
    """
    batch = question if isinstance(question, Batch) else question.batch
    assert batch.size == 1, batch.size
    last = int(batch.lengths[0]) - 1
    sites = {i: f"text.{i}.attn" for i in layers}
    total: dict[int, Tensor] = {}
    for _ in range(draws):
        noise = NoiseTrace(tuple(sites.values()), places, last, sigma, rng)
        run_until_enough(backbone, question, noise)
        for i, site in sites.items():
            total[i] = total.get(i, torch.zeros(())) + noise.influence[site].cpu() / draws
    return total
