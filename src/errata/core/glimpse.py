"""Looking at the lower part of a model: a forward that ends when it has shown enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.backbone import Backbone, Batch, PrefixState
from errata.core.hooks.manager import HookContext
from errata.core.patch import Patch
from errata.core.recorder import Recorder


class EnoughRecorded(Exception):
    """Raised by a patch of `run_until_enough` to end the forward that it is live in."""


@torch.no_grad()
def run_until_enough(
    backbone: Backbone, what: Batch | PrefixState, patch: Patch, rows: Tensor | None = None
) -> None:
    """A forward with `patch` live, which may end it by raising Enough."""
    with backbone.applied(patch):
        try:
            backbone.logits(what, rows=rows)
        except EnoughRecorded:
            pass


def seen_at(
    backbone: Backbone, what: Batch | PrefixState, sites: Sequence[str], rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Outputs [B, T, o] of `sites`, without gradients; nothing above the last of them is run."""
    glimpse = EarlyExitRecorder(sites)
    run_until_enough(backbone, what, glimpse, rows)
    return glimpse.y


class EarlyExitRecorder(Recorder):
    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        super().at(site, x, y, ctx)
        if self.sites <= self.y.keys():
            raise EnoughRecorded
        return y
