"""What an edit is once it has been found: data that acts at ports.

A patch holds no reference to a model. It is saved as safetensors keyed by site names, refuses a
model with another fingerprint, and is undone by no longer being live. docs: design of the four
shapes in `errata.patches`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from errata.core import registry
from errata.core.errors import BadPatch, FingerprintMismatch, UnknownName
from errata.core.files import dumps, write_bytes, write_json
from errata.core.types import Edit, Prompt, from_json, to_json

if TYPE_CHECKING:
    from errata.core.backbone import Backbone
    from errata.core.hooks.manager import HookContext

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


@dataclass(frozen=True, slots=True)
class Head:
    """The content of `patch.json`: the files next to it are named by their sha256."""

    format: int
    header: Header
    sites: tuple[str, ...]
    settings: Mapping[str, Any]
    sha256: str
    edits_sha256: str


class Patch(nn.Module, ABC):
    """An edit as data. Subclasses are the shapes in `errata.patches`, one file each.

    `decides`: the patch makes decisions from the prompt (it then needs prompt lengths or a mask).
    `sites`: the sites where it acts; empty for a patch that only rewrites the prompt.
    `pointwise`: what it does to a column depends on that column alone, so that it may be shown only
    those that the answer is read from. `causal`: it depends on the columns up to that one and on
    the row's `HookContext.rows` alone, never on where the prompt ends, so that questions which
    begin alike may share their first columns (`pointwise` ones are, too). `ahead`: the site whose
    stream it decides from, where that is above a site where it acts; the question is then
    rehearsed up to there (`HookContext.rehearsing`). `observes`: the sites among `sites` that it
    reads and never changes. `dropped`: demonstrations that did not fit into the prompts so far.
    """

    plugin_kind: ClassVar[str] = "patches"
    decides: bool = False
    pointwise: bool = False
    causal: bool = False
    ahead: str = ""
    observes: frozenset[str] = frozenset()
    dropped: int = 0

    def __init__(self, sites: Sequence[str] = ()) -> None:
        super().__init__()
        self.sites: frozenset[str] = frozenset(sites)
        self.header = Header()
        self.edits: tuple[Edit, ...] = ()

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        """The site's output [B, T, o], changed or as it is; x [B, T, n] is its input."""
        return y

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        """The site's input [B, T, n], changed or as it is."""
        return x

    def rewrite(self, prompt: Prompt, backbone: Backbone, row: int = 0) -> Prompt:
        """The prompt that the model is shown instead. Decided from the prompt alone."""
        return prompt

    @property
    def rewrites(self) -> bool:
        return type(self).rewrite is not Patch.rewrite

    def decided(self, ctx: HookContext) -> Mapping[int, Mapping[str, Tensor]]:
        """What it decided for the question of `ctx`, to be looked at: block -> name -> [B, ...].

        Empty for a patch that decides nothing, or tells nothing.
        """
        return {}

    def parts(self) -> list[Patch]:
        """The patches that this one consists of, in order."""
        return [self]

    def acting(self) -> list[Patch]:
        """What ports show their tensors to: combinators of equal shapes act as those."""
        return [self]

    def on_row(self, row: int) -> list[Patch]:
        """The patches that row `row` meets, in order."""
        return self.parts()

    def members(self) -> Sequence[Patch] | None:
        """What a combinator was put together from, each with its own header; else None."""
        return None

    @abstractmethod
    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON-ready settings, tensors keyed by `<site>/<name>`)."""

    @classmethod
    @abstractmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `pack`."""

    def join(self, other: Patch) -> Patch:
        """Both patches as one, `other` on top.

        Shapes whose union is not one after the other override this, and fall back to it for a
        patch that they have no union with. Patches that are live together are joined, see `joined`.
        """
        from errata.patches.stack import Stack

        return Stack([self, other], apart=type(other) is type(self))

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


def joined(stack: Sequence[Patch]) -> list[Patch]:
    """The same patches, flat, with one union where a shape overrides `join` (memories, facts)."""
    done: list[Patch] = []
    for part in (p for patch in stack for p in patch.parts()):
        for i, earlier in enumerate(done):
            both = earlier.join(part) if _joins(earlier, part) else None
            if type(both) is type(earlier):
                done[i] = both
                break
        else:
            done.append(part)
    return done


def _joins(a: Patch, b: Patch) -> bool:
    """One shape with a union of its own, found, and made for one model."""
    return (
        type(a) is type(b)
        and type(a).join is not Patch.join
        and len({a.header.fingerprint, b.header.fingerprint} - {""}) <= 1
        and not any(p.requires_grad for one in (a, b) for p in one.parameters())
    )


def common_header(patches: Sequence[Patch]) -> Header:
    """The first header that names a model; the parts of a combinator keep their own."""
    first = patches[0].header if patches else Header()
    return next((p.header for p in patches if p.header.fingerprint), first)


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

    Each file is written whole or not at all. Raises BadPatch for a patch that names no model.
    """
    _check_named(patch, folder)
    settings, tensors = pack(patch)
    stored = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    blob = to_safetensors(stored, metadata={"format": str(FORMAT)})
    lines = "".join(dumps(to_json(e)) + "\n" for e in patch.edits).encode()
    head = {
        "format": FORMAT,
        "header": asdict(patch.header),
        "sites": sorted(patch.sites),
        "settings": settings,
        "sha256": _sha256(blob),
        "edits_sha256": _sha256(lines),
    }
    numbers = sum(v.numel() for v in stored.values())
    write_bytes(folder / "edits.jsonl", lines)
    write_bytes(folder / "patch.safetensors", blob)
    write_bytes(folder / "README.md", _card(patch, numbers).encode())
    write_json(folder / "patch.json", head)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _headers(patch: Patch) -> Iterator[Header]:
    """The patch's own header, and those of its parts."""
    yield patch.header
    for member in patch.members() or ():
        yield from _headers(member)


def _check_named(patch: Patch, folder: Path) -> None:
    """Raises BadPatch where the patch, or a part of it, does not name the model it was made for."""
    members = patch.members()
    if not members and not patch.header.fingerprint:
        raise BadPatch(
            f"{folder}: the patch ({_kind(patch)}) does not say which model it was made for. "
            "Give it the fingerprint: patch.with_header(Header(backbone=backbone.name, "
            "fingerprint=backbone.fingerprint()), edits)."
        )
    for member in members or ():
        if member.members() is None or member.members():  # a stack of nothing names no model
            _check_named(member, folder)


def read_head(folder: Path) -> dict[str, Any]:
    """The content of `patch.json`, checked. Raises BadPatch."""
    try:
        head = json.loads((folder / "patch.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadPatch(
            f"{folder} is not a patch: it has no patch.json. "
            "`errata edit ... --out DIR` writes one."
        ) from None
    except OSError as e:
        raise BadPatch(f"{folder}/patch.json cannot be read ({e.strerror}).") from None
    except (ValueError, RecursionError) as e:
        raise BadPatch(
            f"{folder}/patch.json is not valid JSON ({e}). Restore it from a copy."
        ) from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        given = head.get("format") if isinstance(head, dict) else None
        raise BadPatch(
            f"{folder} has patch format {given}, this errata reads {FORMAT}. "
            "Install the matching version."
        )
    try:
        from_json(Head, head)
    except ValueError as e:
        raise BadPatch(
            f"{folder}/patch.json is not as errata writes it ({e}). Restore it from a copy."
        ) from None
    return head


def read_edits(folder: Path, head: Mapping[str, Any]) -> list[Edit]:
    """The facts of a patch, checked against its head. Raises BadPatch."""
    lines = _read(folder, "edits.jsonl", head["edits_sha256"])
    try:
        return [from_json(Edit, json.loads(line)) for line in lines.splitlines()]
    except ValueError as e:
        raise BadPatch(f"{folder}/edits.jsonl cannot be read ({e}).") from None


def _read(folder: Path, name: str, sha256: str) -> bytes:
    """A file that must be what its hash says. Raises BadPatch."""
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise BadPatch(f"{folder} has no {name}. Restore it from a copy.") from None
    except OSError as e:
        raise BadPatch(f"{folder}/{name} cannot be read ({e.strerror}).") from None
    if _sha256(data) != sha256:
        raise BadPatch(
            f"{folder}/{name} does not match the hash in patch.json. Restore it from a copy."
        )
    return data


def load(folder: Path, backbone: Backbone | None = None) -> Patch:
    """Reads a patch, bit for bit as saved. With a backbone, refuses one made for another model.

    Whatever is wrong with the folder raises BadPatch.
    """
    head = read_head(folder)
    header = from_json(Header, head["header"])
    if backbone is not None:
        check(header, backbone, folder)
    blob = _read(folder, "patch.safetensors", head["sha256"])
    edits = read_edits(folder, head)
    try:
        patch = unpack(head["settings"], from_safetensors(blob))
    except UnknownName as e:
        raise BadPatch(
            f"{folder} is of a shape that is not installed: {e} Install what brings it."
        ) from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, AssertionError,
            RuntimeError) as e:  # fmt: skip
        raise BadPatch(
            f"{folder}: the settings in patch.json do not fit its tensors "
            f"({type(e).__name__}: {e}). Restore it from a copy."
        ) from None
    patch.with_header(header, edits).requires_grad_(False)
    if sorted(patch.sites) != head["sites"]:
        raise BadPatch(f"{folder}/patch.json names other sites than its tensors do.")
    _check_named(patch, folder)
    if backbone is None:
        return patch
    check_model(patch, backbone, folder)
    return patch.to_backbone(backbone)


def check(header: Header, backbone: Backbone, what: object) -> None:
    """Raises FingerprintMismatch, naming both models; another dtype is only warned of."""
    _check_fingerprint(header, backbone, what)
    here = str(backbone.dtype).removeprefix("torch.")
    if header.dtype and header.dtype != here:
        warnings.warn(
            f"{what} was found on {header.backbone} in {header.dtype}, here it is in {here}: "
            "answers may differ a little.",
            stacklevel=3,
        )


def check_model(patch: Patch, backbone: Backbone, what: object = None) -> None:
    """Raises FingerprintMismatch when the patch, or a part of it, was made for another model."""
    for header in _headers(patch):
        _check_fingerprint(header, backbone, what or f"a patch of '{header.editor}'")


def _check_fingerprint(header: Header, backbone: Backbone, what: object) -> None:
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
    "check_model",
    "common_header",
    "fused",
    "joined",
    "load",
    "pack",
    "read_edits",
    "read_head",
    "replace",
    "save",
    "unpack",
    "versions",
]
