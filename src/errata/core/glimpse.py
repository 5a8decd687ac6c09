"""Looking at the lower part of a model: a forward that ends when it has shown enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.backbone import Backbone, Batch, Entered
from errata.core.hooks.manager import Ctx
from errata.core.patch import Patch
from errata.core.recorder import Watch


class Enough(Exception):
    """Raised by a patch of `run_until_enough` to end the forward that it is live in."""


@torch.no_grad()
def run_until_enough(
    backbone: Backbone, what: Batch | Entered, patch: Patch, rows: Tensor | None = None
) -> None:
    """A forward with `patch` live, which may end it by raising Enough."""
    with backbone.applied(patch):
        try:
            backbone.logits(what, rows=rows)
        except Enough:
            pass


def seen_at(
    backbone: Backbone, what: Batch | Entered, sites: Sequence[str], rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Outputs [B, T, o] of `sites`, without gradients; nothing above the last of them is run."""
    glimpse = _Glimpse(sites)
    run_until_enough(backbone, what, glimpse, rows)
    return glimpse.y


class _Glimpse(Watch):
    def at(self, site: str, x: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        super().at(site, x, y, ctx)
        if self.sites <= self.y.keys():
            raise Enough
        return y
