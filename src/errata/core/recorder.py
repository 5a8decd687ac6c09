"""A patch that changes nothing and remembers what passed: inputs and outputs of sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from errata.core.backbone import Backbone, Batch, PrefixState
from errata.core.hooks.manager import HookContext
from errata.core.patch import Patch


class Recorder(Patch):
    """`x[site]` [B, T, n] and `y[site]` [B, T, o] of the last forward, with their graph."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__(tuple(sites))
        self.x: dict[str, Tensor] = {}
        self.y: dict[str, Tensor] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.x[site], self.y[site] = x, y
        return y

    def pack(self) -> NoReturn:
        raise AssertionError("a watch is not an edit")

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NoReturn:
        raise AssertionError("a watch is not an edit")


@torch.no_grad()
def run_through(
    backbone: Backbone, what: Batch | PrefixState, layer: int, *, rows: Tensor | None = None
) -> None:
    """Runs the model up to and with text block `layer`, for what live patches see of it."""
    if layer + 1 < backbone.depth:
        backbone.enter(what, layer + 1, rows=rows)
    else:
        backbone.logits(what, rows=rows)
