"""What an edit is once it has been found: data that acts at ports.

A patch holds no reference to a model. It is saved as safetensors keyed by site names, refuses a
model with another fingerprint, and is undone by no longer being live. docs: design of the four
shapes in `errata.patches`.
"""

from __future__ import annotations

import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from errata.core import registry
from errata.core.errors import BadPatch, FingerprintMismatch
from errata.core.record import append_lines, read_lines, write_bytes, write_json
from errata.core.types import Edit, Prompt

if TYPE_CHECKING:
    from errata.core.backbone import Backbone
    from errata.core.ports import Ctx

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Header:
    """Where a patch comes from: tells two patches apart, and the right model from others."""

    editor: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    revision: str = ""
    fingerprint: str = ""
    dtype: str = ""
    state: str = ""
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Patch(nn.Module, ABC):
    """An edit as data. Subclasses are the shapes in `errata.patches`, one file each.

    `decides`: the patch makes decisions from the prompt (it then needs prompt lengths or a mask).
    `sites`: the sites where it acts; empty for a patch that only rewrites the prompt.
    """

    plugin_kind: ClassVar[str] = "patches"
    decides: bool = False

    def __init__(self, sites: Sequence[str] = ()) -> None:
        super().__init__()
        self.sites: frozenset[str] = frozenset(sites)
        self.header = Header()
        self.edits: tuple[Edit, ...] = ()

    def at(self, site: str, x: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        """The site's output [B, T, o], changed or as it is; x [B, T, n] is its input."""
        return y

    def before(self, site: str, x: Tensor, ctx: Ctx) -> Tensor:
        """The site's input [B, T, n], changed or as it is."""
        return x

    def rewrite(self, prompt: Prompt, backbone: Backbone, row: int = 0) -> Prompt:
        """The prompt that the model is shown instead. Decided from the prompt alone."""
        return prompt

    @property
    def rewrites(self) -> bool:
        return type(self).rewrite is not Patch.rewrite

    def parts(self) -> list[Patch]:
        """The patches that this one consists of, in order."""
        return [self]

    @abstractmethod
    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON-ready settings, tensors keyed by `<site>/<name>`)."""

    @classmethod
    @abstractmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `pack`."""

    def join(self, other: Patch) -> Patch:
        """Both patches as one, `other` on top.

        Shapes whose union is not one after the other override this.
        """
        from errata.patches.stack import Stack

        return Stack([self, other])

    @classmethod
    def fuse(cls, patches: Sequence[Self]) -> Self | None:
        """Several patches of this shape as one that does the same, or None if not possible."""
        return None

    @classmethod
    def in_rows(cls, patches: Sequence[Self]) -> Self | None:
        """One patch of this shape with a row per given patch, or None if not possible."""
        return None

    def with_header(self, header: Header, edits: Sequence[Edit]) -> Self:
        self.header = header
        self.edits = tuple(edits)
        return self

    def to_backbone(self, backbone: Backbone) -> Self:
        """Moves the tensors to the devices of their sites; they stay float32."""
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            device = backbone.device_of(self.site_of(name))
            if tensor.device != device:
                tensor.data = tensor.data.to(device)
        return self

    def site_of(self, tensor: str) -> str:
        """The site that a parameter or buffer of this module belongs to ("" = the text model)."""
        return ""


def fused(stack: Sequence[Patch]) -> tuple[Patch, ...]:
    """The same patches, equal shapes merged, so that work does not grow with their number."""
    flat: list[Patch] = []
    for patch in stack:
        flat.extend(patch.parts())
    done: list[Patch] = []
    groups: dict[type[Patch], list[Patch]] = {}
    for patch in flat:
        frozen = not any(p.requires_grad for p in patch.parameters())
        groups.setdefault(type(patch), []) if frozen else None
        (groups[type(patch)] if frozen else done).append(patch)
    merged: list[Patch] = []
    for cls, group in groups.items():
        one = cls.fuse(group) if len(group) > 1 else None
        merged.extend([one] if one is not None else group)
    return (*merged, *done)


def versions() -> dict[str, str]:
    import transformers

    import errata

    return {
        "errata": errata.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _kind(patch: Patch) -> str:
    return type(patch).__module__.rsplit(".", 1)[1]


def pack(patch: Patch) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`pack` of any shape, with the name of the shape, so that `unpack` finds it again."""
    settings, tensors = patch.pack()
    return {"shape": _kind(patch), **settings}, tensors


def unpack(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    cls = registry.load("patches", str(settings.get("shape", "")))
    return cls.unpack(settings, tensors)  # type: ignore[no-any-return]


def save(patch: Patch, folder: Path) -> None:
    """Writes `patch.json`, `patch.safetensors`, `edits.jsonl` and `README.md`.

    Each file is written whole or not at all.
    """
    settings, tensors = pack(patch)
    stored = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    blob = to_safetensors(stored, metadata={"format": str(FORMAT)})
    import hashlib

    head = {
        "format": FORMAT,
        "header": asdict(patch.header),
        "sites": sorted(patch.sites),
        "settings": settings,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    (folder / "edits.jsonl").unlink(missing_ok=True)
    append_lines(folder / "edits.jsonl", patch.edits)
    write_bytes(folder / "patch.safetensors", blob)
    write_bytes(
        folder / "README.md", _card(patch, sum(v.numel() for v in stored.values())).encode()
    )
    write_json(folder / "patch.json", head)


def read_head(folder: Path) -> dict[str, Any]:
    """The content of `patch.json`, checked. Raises BadPatch."""
    try:
        head = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadPatch(
            f"{folder} is not a patch: it has no patch.json. "
            "`errata edit ... --out DIR` writes one."
        ) from None
    except ValueError as e:
        raise BadPatch(
            f"{folder}/patch.json is not valid JSON ({e}). Restore it from a copy."
        ) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        given = head.get("format") if isinstance(head, dict) else None
        raise BadPatch(
            f"{folder} has patch format {given}, this errata reads {FORMAT}. "
            "Install the matching version."
        )
    return head


def load(folder: Path, backbone: Backbone | None = None) -> Patch:
    """Reads a patch, bit for bit as saved. With a backbone, refuses one made for another model."""
    import hashlib

    head = read_head(folder)
    header = Header(**head["header"])
    if backbone is not None:
        check(header, backbone, folder)
    try:
        blob = (folder / "patch.safetensors").read_bytes()
    except FileNotFoundError:
        raise BadPatch(f"{folder} has no patch.safetensors. Restore it from a copy.") from None
    if hashlib.sha256(blob).hexdigest() != head["sha256"]:
        raise BadPatch(
            f"{folder}/patch.safetensors does not match the hash in patch.json. "
            "Restore it from a copy."
        )
    try:
        with safe_open(folder / "patch.safetensors", framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except SafetensorError as e:
        raise BadPatch(
            f"{folder}/patch.safetensors cannot be read ({e}). Restore it from a copy."
        ) from None
    edits = read_lines(folder / "edits.jsonl", Edit)
    patch = unpack(head["settings"], tensors).with_header(header, edits).requires_grad_(False)
    return patch.to_backbone(backbone) if backbone is not None else patch


def check(header: Header, backbone: Backbone, what: object) -> None:
    """Raises FingerprintMismatch, naming both models."""
    if header.fingerprint and header.fingerprint != backbone.fingerprint():
        raise FingerprintMismatch(
            f"{what} was made for {header.backbone} ({header.fingerprint[:12]}), "
            f"not for {backbone.name} ({backbone.fingerprint()[:12]}). "
            "Find the edit again on this model with `errata edit`."
        )


def _card(patch: Patch, numbers: int) -> str:
    h = patch.header
    facts = "\n".join(f"- {e.prompt.text!r} -> {e.target!r}" for e in patch.edits[:50])
    more = f"\n- and {len(patch.edits) - 50} more (edits.jsonl)" if len(patch.edits) > 50 else ""
    return (
        f"# errata patch\n\nEditor `{h.editor}` on `{h.backbone}` "
        f"(fingerprint `{h.fingerprint[:12]}`), {len(patch.edits)} edit(s), {numbers} numbers, "
        f"made {h.created}.\n\n## Facts\n\n{facts}{more}\n\n"
        f'## Use\n\n```\nerrata ask {h.backbone} --patch . "your question"\n```\n\n'
        "Leaving out `--patch` gives the unedited model back, bit for bit.\n"
    )


__all__ = [
    "Header",
    "Patch",
    "check",
    "fused",
    "load",
    "pack",
    "read_head",
    "replace",
    "save",
    "unpack",
    "versions",
]
