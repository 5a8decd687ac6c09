"""Stack: all patches on every row, in order. Closed: a stack is a patch.

`Stack` of nothing is the identity. Parts of one shape are fused when the stack goes live; where
one after the other is wrong (facts in front of a prompt), they are joined at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from errata.core import patch as core
from errata.core.patch import Header, Patch, common_header, joined
from errata.core.types import Edit, Prompt, from_json, to_json

if TYPE_CHECKING:
    from errata.core.backbone import Backbone
    from errata.core.hooks.manager import HookContext


class Stack(Patch):
    """Patches one after the other."""

    def __init__(self, patches: Sequence[Patch], *, apart: bool = False) -> None:
        """`apart`: the patches are known to have no union."""
        flat = [q for p in patches for q in p.parts()] if apart else joined(patches)
        super().__init__(tuple({s for p in flat for s in p.sites}))
        self.patches = nn.ModuleList(flat)
        self.decides = any(p.decides for p in flat)
        self.edits = tuple(dict.fromkeys(e for p in flat for e in p.edits))
        self.header = common_header(flat)

    def parts(self) -> list[Patch]:
        return list(self.patches)  # type: ignore[arg-type]

    def on_row(self, row: int) -> list[Patch]:
        return [q for p in self.parts() for q in p.on_row(row)]

    def members(self) -> list[Patch]:
        return self.parts()

    def join(self, other: Patch) -> Patch:
        return Stack([self, other])

    @property
    def rewrites(self) -> bool:
        return any(p.rewrites for p in self.parts())

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        for p in self.parts():
            if site in p.sites:
                y = p.at(site, x, y, ctx)
        return y

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        for p in self.parts():
            if site in p.sites:
                x = p.before(site, x, ctx)
        return x

    def rewrite(self, prompt: Prompt, backbone: Backbone, row: int = 0) -> Prompt:
        for p in self.parts():
            prompt = p.rewrite(prompt, backbone, row)
        return prompt

    def to_backbone(self, backbone: Backbone) -> Self:
        for p in self.parts():
            p.to_backbone(backbone)
        return self

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return pack_parts(self.parts())

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        return cls(unpack_parts(settings, tensors))


def pack_parts(patches: Sequence[Patch]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parts with their headers and edits, and their tensors under `<index>/`."""
    settings: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, p in enumerate(patches):
        own, values = core.pack(p)
        edits = [to_json(e) for e in p.edits]
        settings.append({**own, "header": asdict(p.header), "edits": edits})
        tensors.update({f"{i}/{k}": v for k, v in values.items()})
    return {"parts": settings}, tensors


def unpack_parts(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Patch]:
    parts = []
    for i, own in enumerate(settings["parts"]):
        values = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.split("/", 1)[0] == str(i)}
        edits = [from_json(Edit, e) for e in own["edits"]]
        part = core.unpack(own, values).with_header(from_json(Header, own["header"]), edits)
        parts.append(part.requires_grad_(False))
    return parts
