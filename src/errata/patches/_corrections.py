"""The corrections of a memory as tensors: corrections of one form and size share a stack.

A memory may hold thousands of corrections. They are held as single patches, of which only the
chosen ones act; in a file, those that are alike are one tensor with a leading dimension each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.core import patch as core
from errata.core.files import dumps
from errata.core.patch import Patch
from errata.patches._parts import PartsPatch
from errata.patches.rows import Rows


def together(corrections: Sequence[Patch]) -> Patch:
    """A row patch: row i does what correction i does."""
    first = corrections[0]
    one = None
    if all(type(c) is type(first) for c in corrections):
        one = type(first).batch(corrections)
    return Rows(corrections) if one is None else one


def pack_alike(corrections: Sequence[Patch]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """(groups of corrections that are alike, their tensors under `corrections/<group>/`)."""
    groups: dict[str, tuple[dict[str, Any], list[int], list[dict[str, Tensor]]]] = {}
    for i, correction in enumerate(corrections):
        settings, tensors = core.pack(correction)
        shapes = {k: [str(t.dtype), *t.shape] for k, t in sorted(tensors.items())}
        group = groups.setdefault(dumps([settings, shapes]), (settings, [], []))
        group[1].append(i)
        group[2].append(tensors)
    out = [{"settings": settings, "index": index} for settings, index, _ in groups.values()]
    stacks = {
        f"corrections/{g}/{name}": torch.stack([t[name].detach() for t in each])
        for g, (_, _, each) in enumerate(groups.values())
        for name in each[0]
    }
    return out, stacks


def unpack_alike(groups: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[Patch]:
    """The inverse of `pack_alike`."""
    corrections: dict[int, Patch] = {}
    for g, group in enumerate(groups):
        prefix = f"corrections/{g}/"
        stacks = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        for row, i in enumerate(group["index"]):
            part = core.unpack(group["settings"], {k: t[row] for k, t in stacks.items()})
            corrections[int(i)] = part.requires_grad_(False)
    return [corrections[i] for i in sorted(corrections)]


def singles(branch: Patch) -> list[Patch]:
    """The rows of a row patch as single patches."""
    rows = branch.rows
    assert rows is not None, "a row patch is expected"
    if isinstance(branch, PartsPatch):
        return [branch.row(i).requires_grad_(False) for i in range(rows)]
    kept = [branch.keep([i]) for i in range(rows)]
    return [k.requires_grad_(False) for k in kept if k is not None]
