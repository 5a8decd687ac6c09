"""Stack: all patches on every row, in order. A stack is itself a patch.

An empty stack changes nothing. Patches that must act as one (a shared memory, facts before a
prompt) are merged at once; the others stay separate and are merged only while they are live. So
are patches for one question that were found apart: while they are live the last one acts
(`errata.core.patch.settled`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from errata.core import patch as core
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import by_columns
from errata.core.model.live_patches import live_hooks
from errata.core.patch import (
    Header,
    Patch,
    PromptEncoder,
    common_header,
    inherit,
    parts_of,
    trainable,
    united,
)
from errata.core.types import Edit, Prompt, from_json, to_json


class Stack(Patch):
    """Patches one after the other."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        flat = [p for p in united(patches, to_keep=True) if isinstance(p, Patch)]
        super().__init__({s for p in flat for s in p.sites})
        self.folded = next((p.folded for p in patches if p.folded is not None), {})
        self.patches = nn.ModuleList(flat)
        self.decides = any(p.decides for p in flat)
        self.by_column = by_columns(flat)
        parts = [p.edits for p in flat if p.edits]
        self.edits = parts[0] if len(parts) == 1 else tuple(dict.fromkeys(chain(*parts)))
        self.header = common_header(flat)

    def members(self) -> list[Patch]:
        return list(self.patches)  # type: ignore[arg-type]

    @property
    def rewrites(self) -> bool:
        return any(p.rewrites for p in self.members())

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        for p in self.members():
            if site in p.sites:
                y = p.at(site, x, y, ctx)
        return y

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        for p in self.members():
            if site in p.sites:
                x = p.before(site, x, ctx)
        return x

    def rewrite(self, prompt: Prompt, model: PromptEncoder, row: int = 0) -> Prompt:
        for p in self.members():
            prompt = p.rewrite(prompt, model, row)
        return prompt

    def to_devices(self, device_of: Callable[[str], torch.device]) -> None:
        self.folded = {}
        for p in self.members():
            p.to_devices(device_of)

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return pack_parts(self.members())

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(unpack_parts(settings, tensors))


def stacked(*patches: Patch) -> Patch:
    """The patches one after the other, as one patch: a stack, or a single merged patch."""
    one = Stack(patches)
    parts = one.members()
    return parts[0] if len(parts) == 1 else one


def folded(*patches: Patch) -> Patch:
    """As `stacked`, of what the patches come to when they are live: single parts are not kept.

    It acts as they do, bit for bit, however many edits it holds; none of them can be taken out.
    """
    one = stacked(*patches)
    live_hooks([one])
    how, out = one.folded or {}, dict[int, Patch]()
    for part in parts_of(one):
        fold = how.get(type(part))
        if fold is None or len(fold.totals) > 1 or trainable(part):
            out[id(part)] = part
        elif id(fold.totals[0]) not in out:
            out[id(fold.totals[0])] = inherit(fold.totals[0], fold.patches)
    return stacked(*out.values())


def pack_parts(patches: Sequence[Patch]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parts with their headers and edits, and their tensors under `<index>/`."""
    settings: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, p in enumerate(patches):
        packed, values = core.pack(p)
        edits = [to_json(e) for e in p.edits]
        settings.append({**packed, "header": asdict(p.header), "edits": edits})
        tensors.update({f"{i}/{k}": v for k, v in values.items()})
    return {"parts": settings}, tensors


def unpack_parts(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Patch]:
    """The inverse of `pack_parts`."""
    parts = []
    for i, packed in enumerate(settings["parts"]):
        values = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.split("/", 1)[0] == str(i)}
        edits = [from_json(Edit, e) for e in packed["edits"]]
        part = core.unpack(packed, values).with_header(from_json(Header, packed["header"]), edits)
        parts.append(part.requires_grad_(False))
    return parts
