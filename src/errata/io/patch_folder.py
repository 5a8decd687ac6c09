"""Saves and loads a patch as a folder: `patch.json`, `patch.safetensors`, `edits.jsonl`, a card.

`patch.json` holds the sha256 of the two data files. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from errata.core.errors import BadImage, BadPatch, Notice, UnknownName
from errata.core.files import (
    FilePath,
    checked,
    dumps,
    exists,
    finish_folder,
    json_bytes,
    read_bytes,
    read_json,
    shortened,
    write_folder,
)
from errata.core.formats.json_lines import json_lines
from errata.core.locks import SHORT, locked
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.patch import (
    Header,
    Patch,
    check_fingerprint,
    pack,
    pictures_of,
    shape_of,
    unpack,
)
from errata.core.types import Edit, brief, from_json, path_of, to_json, why
from errata.io.images import check_image

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Head:
    """The content of `patch.json`."""

    format: int
    header: Header
    sites: tuple[str, ...]
    settings: Mapping[str, Any]
    sha256: str
    edits_sha256: str


def save(patch: Patch, folder: FilePath) -> None:
    """Writes `patch.json`, `patch.safetensors`, `edits.jsonl` and `README.md`.

    All of them or none: a patch that was there before is replaced in one step, other files are
    kept. Raises BadPatch for a patch that names no model, InUse, DiskFull, BadOutput.
    """
    if not isinstance(patch, Patch):
        raise BadPatch(f"save_patch takes a patch, not {brief(patch)}. Use the result's `.patch`.")
    folder = path_of(folder, "the folder of a patch")
    _check_named(patch, folder)
    contents = _packed(patch)
    with locked(folder, wait=SHORT):
        write_folder(folder, contents)


def _packed(patch: Patch) -> dict[str, bytes]:
    """The files of a patch by name."""
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
    return {
        "edits.jsonl": lines,
        "patch.safetensors": blob,
        "README.md": _card(patch, numbers).encode(),
        "patch.json": json_bytes(head),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_named(patch: Patch, folder: Path) -> None:
    """Raises BadPatch if the patch, or a part of it, does not name the model it was made for."""
    members = patch.members()
    if not members and not patch.header.fingerprint:
        raise BadPatch(
            f"{folder}: the patch ({shape_of(patch)}) does not say which model it was made for. "
            "Give it the fingerprint: patch.with_header(Header(backbone=backbone.name, "
            "fingerprint=backbone.fingerprint()), edits)."
        )
    for member in members or ():
        empty = member.members() is not None and not member.members()
        if isinstance(member, Patch) and not empty:  # an empty stack was made for no model
            _check_named(member, folder)


def read_head(folder: FilePath) -> dict[str, Any]:
    """The content of `patch.json`, checked. Raises BadPatch."""
    folder = path_of(folder, "the folder of a patch")
    with suppress(OSError, ValueError):
        finish_folder(folder)
    path = folder / "patch.json"
    if not exists(path):
        inside = sorted(p.parent.name for p in folder.glob("*/patch.json"))
        advice = "`errata edit ... --out DIR` writes one."
        if inside:
            more = "" if len(inside) < 4 else f" and {len(inside) - 3} more"
            names = f"{', '.join(inside[:3])}{more}"
            advice = f"It holds patches ({names}): name one, {folder / inside[0]}."
        raise BadPatch(f"{folder} is not a patch: it has no patch.json. {advice}")
    head = read_json(path, BadPatch)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        version = head.get("format") if isinstance(head, dict) else None
        raise BadPatch(
            f"{folder} has patch format {shortened(version)}, this errata reads {FORMAT}. "
            "Install the matching version."
        )
    checked(Head, head, path, BadPatch)
    return head


def read_edits(folder: Path, head: Mapping[str, Any]) -> list[Edit]:
    """The facts of a patch, checked against its head. Raises BadPatch."""
    lines = _read(folder, "edits.jsonl", head["edits_sha256"])
    try:
        return [from_json(Edit, row) for _, row in json_lines(lines)]
    except ValueError as e:
        raise BadPatch(f"{folder}/edits.jsonl cannot be read ({why(e)}).") from None


def _read(folder: Path, name: str, sha256: str) -> bytes:
    """The content of a file, checked against its hash. Raises BadPatch."""
    data = read_bytes(folder / name, BadPatch)
    if _sha256(data) != sha256:
        raise BadPatch(
            f"{folder}/{name} does not match the hash in patch.json. Restore it from a copy."
        )
    return data


def load(folder: FilePath, backbone: Backbone | None = None) -> Patch:
    """Reads a patch, bit for bit as saved. With a backbone, refuses one made for another model.

    Whatever is wrong with the folder raises BadPatch.
    """
    folder = path_of(folder, "the folder of a patch")
    if backbone is not None:
        check_backbone(backbone)
    head = read_head(folder)
    header = from_json(Header, head["header"])
    if backbone is not None:
        _check_header(header, backbone, folder)
    blob = _read(folder, "patch.safetensors", head["sha256"])
    edits = read_edits(folder, head)
    try:
        patch = unpack(head["settings"], from_safetensors(blob))
    except UnknownName as e:
        raise BadPatch(
            f"{folder} is of a shape that is not installed: {e} Install its package."
        ) from None
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, AssertionError,
            RuntimeError) as e:  # fmt: skip
        raise BadPatch(
            f"{folder}: the settings in patch.json do not fit its tensors ({type(e).__name__}). "
            "Restore it from a copy."
        ) from None
    patch.with_header(header, edits).requires_grad_(False)
    if sorted(patch.sites) != head["sites"]:
        raise BadPatch(f"{folder}/patch.json names other sites than its tensors.")
    _check_named(patch, folder)
    _check_pictures(patch, folder)
    if backbone is None:
        return patch
    backbone.check_patch(patch, folder)
    return backbone.place(patch)


def _check_pictures(patch: Patch, folder: Path) -> None:
    """Raises BadPatch for a patch that shows images which are not there, or are others now."""
    for image in pictures_of(patch):
        try:
            check_image(image)
        except BadImage as e:
            raise BadPatch(
                f"{folder} shows the model an image that it does not hold: {e} Or make the edit "
                "again, which saves its images in the patch."
            ) from None


def _check_header(header: Header, backbone: Backbone, folder: Path) -> None:
    """Raises FingerprintMismatch, naming both models; warns if only the dtype differs."""
    check_fingerprint(header, backbone, folder)
    dtype = str(backbone.dtype).removeprefix("torch.")
    if header.dtype and header.dtype != dtype:
        warnings.warn(
            f"{folder} was made on {header.backbone} in {header.dtype}, here it is in {dtype}: "
            "answers may differ a little.",
            Notice,
            stacklevel=3,
        )


def _card(patch: Patch, numbers: int) -> str:
    h = patch.header
    facts = "\n".join(f"- {e.prompt.text!r} -> {e.target!r}" for e in patch.edits[:50])
    below = ", ".join(f"`{o}`" for o in sorted(patch.on_top_of))
    on_top = f"Found on top of the patch {below}: apply that one first.\n\n" if below else ""
    more = f"\n- and {len(patch.edits) - 50} more (edits.jsonl)" if len(patch.edits) > 50 else ""
    return (
        f"# errata patch\n\nEditor `{h.editor}` on `{h.backbone}` "
        f"(fingerprint `{h.fingerprint[:12]}`), {len(patch.edits)} edit(s), {numbers} numbers, "
        f"made {h.created}.\n\n{on_top}## Facts\n\n{facts}{more}\n\n"
        f'## Use\n\n```\nerrata ask {h.backbone} --patch . "your question"\n```\n\n'
        "Leaving out `--patch` gives the unedited model back, bit for bit.\n"
    )
