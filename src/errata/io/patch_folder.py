"""Saves and loads a patch as a folder: `patch.json`, `patch.safetensors`, `edits.jsonl`, a card.

`patch.json` holds the sha256 of the two data files. Nothing is pickled. The pictures of the facts
may be in the folder too (`errata.io.patch_images`).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
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
    from_plain,
    json_bytes,
    read_bytes,
    read_json,
    shortened,
    write_folder,
)
from errata.core.formats.json_lines import json_lines
from errata.core.formats.validation import path_of, why
from errata.core.locks import SHORT, locked
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.patch import (
    Header,
    Patch,
    check_fingerprint,
    origins_of,
    pack,
    pictures_of,
    shape_of,
    unpack,
)
from errata.core.types import Edit, brief, from_json, to_json
from errata.io import patch_images
from errata.io.images import check_image
from errata.io.patch_card import CardFacts, card, check_license
from errata.io.patch_place import holds_patch
from errata.io.states import is_shipped

FORMAT = 1
#: the files of every patch, beside its card
FILES = ("patch.json", "patch.safetensors", "edits.jsonl")


@dataclass(frozen=True, slots=True)
class Head:
    """The content of `patch.json`. images: names of the pictures in the folder `images`."""

    format: int
    header: Header
    sites: tuple[str, ...]
    settings: Mapping[str, Any]
    sha256: str
    edits_sha256: str
    images: tuple[str, ...] = ()


def save(
    patch: Patch,
    folder: FilePath,
    *,
    with_images: bool = False,
    license: str | None = None,
    measured: Sequence[str] = (),
) -> None:
    """Writes `patch.json`, `patch.safetensors`, `edits.jsonl` and `README.md`.

    All of them or none: a patch that was there before is replaced in one step, with all other
    files kept. A folder that holds other things and no patch is refused. with_images: the
    picture files of the facts are copied into the folder, as they are. license: an SPDX name for
    the card. measured: lines for the card, what was measured about the patch. Raises BadPatch for
    a patch that names no model or a folder with other things, BadImage for a picture that is not
    there, BadSpec, InUse, DiskFull, BadOutput.
    """
    if not isinstance(patch, Patch):
        raise BadPatch(f"save_patch takes a patch, not {brief(patch)}. Use the result's `.patch`.")
    folder = path_of(folder, "the folder of a patch")
    edits = [to_json(e) for e in patch.edits]
    # what was loaded from this very folder keeps the pictures that are in it
    with_images = with_images or patch_images.names_inside(edits, folder)
    contents = packed(
        patch, os.path.basename(os.path.abspath(folder)), with_images=with_images,
        license=license, measured=measured, what=str(folder),
    )  # fmt: skip
    with locked(folder, wait=SHORT):
        holds_patch(folder)
        before = _pictures_in(folder)
        write_folder(folder, contents)
        _remove_pictures(
            folder, [n for n in before if f"{patch_images.FOLDER}/{n}" not in contents]
        )


def packed(
    patch: Patch, place: str, *, with_images: bool, license: str | None, measured: Sequence[str],
    what: str,
) -> dict[str, bytes]:  # fmt: skip
    """The files of a patch by name. place: what the examples of the card load. what: for errors."""
    check_named(patch, what)
    settings, tensors = pack(patch)
    stored = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    blob = to_safetensors(stored, metadata={"format": str(FORMAT)})
    header, edits = asdict(patch.header), [to_json(e) for e in patch.edits]
    files: dict[str, bytes] = {}
    named = tuple(patch_images.hashed(v) for v in (settings, edits))
    if with_images:
        named = tuple(patch_images.taken_in(v, files) for v in named)
    # other names of its pictures make no other patch
    if list(named) != from_plain([settings, edits]):
        header = _with_origins(header, edits)
        settings, edits = _with_origins_below(named[0], settings), named[1]
    lines = "".join(dumps(e) + "\n" for e in edits).encode()
    images = sorted(name.partition("/")[2] for name in files)
    head = {
        "format": FORMAT,
        "header": header,
        "sites": sorted(patch.sites),
        "settings": settings,
        "sha256": _sha256(blob),
        "edits_sha256": _sha256(lines),
        **({"images": images} if images else {}),
    }
    text = card_of(patch, place, pictures=len(images), license=license, measured=measured)
    return {
        **files,
        "edits.jsonl": lines,
        "patch.safetensors": blob,
        "README.md": text.encode(),
        "patch.json": json_bytes(head),
    }


def card_of(
    patch: Patch, place: str, *, pictures: int, license: str | None, measured: Sequence[str]
) -> str:
    """The text of the card. place: what its examples load. Raises BadSpec for the license."""
    numbers = sum(t.numel() for t in pack(patch)[1].values())
    lines = [measured] if isinstance(measured, str) else list(measured)
    license = check_license(license)
    return card(patch, CardFacts(place, numbers, pictures, state_of(patch), license, lines))


def state_of(patch: Patch) -> str:
    """The hash of a prepared state that others need to load the patch; "" for none.

    Those of the bundled models come with errata.
    """
    found = _state_in(pack(patch)[0])
    return "" if not found or is_shipped(found) else found


def _with_origins(header: Mapping[str, Any], edits: Sequence[Any]) -> dict[str, Any]:
    """The header of a patch with the hashes that it has now, which the edits' paths enter."""
    origins = origins_of(header, [from_json(Edit, e) for e in edits])
    return {**header, "notes": {**header.get("notes", {}), "origins": sorted(origins)}}


def _with_origins_below(settings: Any, before: Any) -> Any:
    """The settings of a combination with `_with_origins` in its parts, as they were before."""
    if not isinstance(settings, Mapping) or "parts" not in settings:
        return settings
    parts = [
        {
            **_with_origins_below(new, old),
            "header": _with_origins(old["header"], old["edits"]),
        }
        for new, old in zip(settings["parts"], before["parts"], strict=True)
    ]
    return {**settings, "parts": parts}


def _state_in(settings: Mapping[str, Any]) -> str:
    own = settings.get("state")
    if isinstance(own, str) and own:
        return own
    inner = [s for k, s in settings.items() if isinstance(s, Mapping) and k != "header"]
    inner += [s for s in settings.get("parts", ()) if isinstance(s, Mapping)]
    return next((found for s in inner if (found := _state_in(s))), "")


def _pictures_in(folder: Path) -> list[str]:
    """The names of the pictures of the patch that is there; none where there is no patch."""
    try:
        return list(read_head(folder).get("images", ()))
    except BadPatch:
        return []


def _remove_pictures(folder: Path, names: Sequence[str]) -> None:
    """Removes pictures of a patch that was replaced; what leads out of the folder is left."""
    for name in names:
        with suppress(OSError, BadPatch):
            patch_images.check_inside(folder, name).unlink()
    with suppress(OSError):
        (folder / patch_images.FOLDER).rmdir()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_named(patch: Patch, what: object) -> None:
    """Raises BadPatch if the patch, or a part of it, does not name the model it was made for."""
    members = patch.members()
    if not members and not patch.header.fingerprint:
        raise BadPatch(
            f"{what}: the patch ({shape_of(patch)}) does not say which model it was made for. "
            "Give it the fingerprint: patch.with_header(Header(backbone=backbone.name, "
            "fingerprint=backbone.fingerprint()), edits)."
        )
    for member in members or ():
        empty = member.members() is not None and not member.members()
        if isinstance(member, Patch) and not empty:  # an empty stack was made for no model
            check_named(member, what)


def read_head(folder: FilePath) -> dict[str, Any]:
    """The content of `patch.json`, checked. Raises BadPatch."""
    folder = path_of(folder, "the folder of a patch")
    with suppress(OSError, ValueError):
        finish_folder(folder)
    path = folder / "patch.json"
    if not exists(path):
        inside = sorted(p.parent.name for p in folder.glob("*/patch.json"))
        advice = "`errata edit ... --out DIR` writes one."
        if exists(folder / "adapter_config.json"):
            advice = "It is a LoRA adapter; make a patch of it: errata patch import-peft."
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
        rows = [row for _, row in json_lines(lines)]
        rows = patch_images.placed(rows, folder, head.get("images", ()))
        return [from_json(Edit, row) for row in rows]
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
    settings = patch_images.placed(head["settings"], folder, head.get("images", ()))
    try:
        patch = unpack(settings, from_safetensors(blob))
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
    check_named(patch, folder)
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
