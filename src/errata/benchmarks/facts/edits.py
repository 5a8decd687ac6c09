"""Makes edits from a JSON Lines file of facts, or from single values. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.benchmarks.facts.rows import PROBE_FIELDS, RowReader
from errata.core.errors import BadEdit, BadImage
from errata.core.files import FilePath, read_bytes
from errata.core.formats.json_lines import BadLine, json_lines
from errata.core.formats.validation import path_of
from errata.core.types import Edit, Image, Prompt
from errata.io.images import hash_image, load_image

REQUIRED = ("prompt", "target")
OPTIONAL = ("image", "subject", "old", "id")


def read_edits(path: FilePath) -> list[Edit]:
    """The edits of a file of facts, one per line. Raises BadEdit or BadImage with file and line.

    The rows may be those of the benchmark `facts`: what it asks beside the edits is checked, and
    left to `errata bench`. Relative images start at the file, or at the current folder.
    """
    path = path_of(path, "a file of edits")
    data = read_bytes(path, BadEdit)
    edits: list[Edit] = []
    try:
        for number, row in json_lines(data):
            where = f"{path}, line {number}"
            edits.append(_edit(row, where, f"{len(edits) + 1:04d}", path.parent))
    except BadLine as e:
        raise BadEdit(f"{path}, line {e.number}: {e}. Write one JSON object per line.") from None
    if not edits:
        raise BadEdit(f"{path} holds no edits. Write one JSON object per line.")
    return edits


def _edit(row: Any, where: str, number: str, folder: Path) -> Edit:
    if not isinstance(row, dict):
        raise BadEdit(f'{where}: not an object. Write {{"prompt": ..., "target": ...}}.')
    _check_keys(row, where)
    reader = RowReader(row, 0, folder)
    reader.probes(row.get("image"), row["target"])
    if reader.problems:
        raise BadEdit(f"{where}: {reader.problems[0]}.")
    return make_edit(
        row["prompt"],
        row["target"],
        image=_beside(row.get("image"), folder),
        subject=row.get("subject"),
        old=row.get("old"),
        name=row.get("id") or number,
        where=where,
    )


def _check_keys(row: Mapping[str, Any], where: str) -> None:
    known = (*REQUIRED, *OPTIONAL, *PROBE_FIELDS)
    for key in REQUIRED:
        if key not in row:
            raise BadEdit(f"{where}: '{key}' is missing. Known keys: {', '.join(known)}.")
    for key, value in row.items():
        if key not in known:
            raise BadEdit(f"{where}: unknown key '{key}'. Known keys: {', '.join(known)}.")
        if key in PROBE_FIELDS:
            continue
        if not isinstance(value, str) and not (value is None and key in OPTIONAL):
            raise BadEdit(f"{where}: '{key}' must be a text, not {json.dumps(value)[:60]}.")


def _beside(image: str | None, folder: Path) -> str | None:
    """The path of an image that lies beside the file of the edits; any other image as it is."""
    if image is None or "\0" in image or image.startswith("data:"):
        return image
    for written in (image, image.replace("\\", "/")):
        if os.path.isfile(folder / written):
            return str(folder / written)
    return image


def make_edit(
    prompt: str,
    target: str,
    *,
    image: str | None = None,
    subject: str | None = None,
    old: str | None = None,
    name: str = "",
    where: str = "the edit",
) -> Edit:
    """One checked edit. Raises BadEdit, also for an image that cannot be read."""
    if not prompt.strip():
        raise BadEdit(f"{where}: the prompt is empty. Give the question to be answered anew.")
    if not target.strip():
        raise BadEdit(f"{where}: the target is empty. Give the answer it should have.")
    if subject is not None and subject not in prompt:
        raise BadEdit(
            f"{where}: the subject '{subject}' is not part of the prompt. Copy it from there."
        )
    try:
        picture = referenced(image)
    except BadImage as e:
        raise BadImage(f"{where}: {e}") from None
    return Edit(Prompt.of(prompt, picture), target, subject=subject, old=old, id=name)


def referenced(image: str | None) -> Image | None:
    """The image with its sha256, from a path or URI. Raises BadImage if it cannot be opened."""
    if image is None:
        return None
    found = Image(image, hash_image(Image(image)))
    load_image(found)  # before a model is loaded
    return found
