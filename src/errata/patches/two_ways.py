"""TwoWays: what an edit does to questions for the fact itself, and to those that follow from it.

Behind a scope that tells the two apart (`Scope.way`), one of the two patches acts. Nothing else
may hold it: without a scope there is nobody to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from errata.core import patch as core
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import by_columns
from errata.core.patch import Patch


class TwoWays(Patch):
    """direct: acts on questions for the edited fact. follows: on those that follow from it."""

    def __init__(self, direct: Patch, follows: Patch) -> None:
        super().__init__(direct.sites | follows.sites)
        self.direct, self.follows = direct, follows
        self.pointwise = direct.pointwise and follows.pointwise
        self.by_column = by_columns((direct, follows))

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        raise AssertionError("a memory behind a scope chooses one of the two ways")

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        self.direct.to_devices(device_of)
        self.follows.to_devices(device_of)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, part in (("direct", self.direct), ("follows", self.follows)):
            settings[name], values = core.pack(part)
            tensors |= {f"{name}/{k}": v for k, v in values.items()}
        return settings, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts = []
        for name in ("direct", "follows"):
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            parts.append(core.unpack(settings[name], own).requires_grad_(False))
        return cls(*parts)


def in_way(correction: Patch, way: int) -> Patch:
    """What the correction of an edit does to a question that belongs to it in this way."""
    if not isinstance(correction, TwoWays):
        return correction
    return correction.follows if way else correction.direct
