"""Reads edits from the command line or from a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.cli.shared.options import referenced
from errata.core.errors import BadEdit, BadImage
from errata.core.formats.json_lines import BadLine, json_lines

if TYPE_CHECKING:
    from errata.core.types import Edit

REQUIRED = ("prompt", "target")
OPTIONAL = ("image", "subject", "old", "id")


def read_edits(path: Path) -> list[Edit]:
    """One edit per line. Raises BadEdit with file and line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadEdit(f"{path} does not exist. Give a JSON Lines file of edits.") from None
    except OSError as e:
        raise BadEdit(f"{path} cannot be read ({e}). Give a JSON Lines file of edits.") from None
    edits: list[Edit] = []
    try:
        for number, row in json_lines(data):
            edits.append(_edit(row, f"{path}, line {number}", f"{len(edits) + 1:04d}"))
    except BadLine as e:
        raise BadEdit(f"{path}, line {e.number}: {e}. Write one JSON object per line.") from None
    if not edits:
        raise BadEdit(f"{path} holds no edits. Write one JSON object per line.")
    return edits


def _edit(row: Any, where: str, number: str) -> Edit:
    if not isinstance(row, dict):
        raise BadEdit(f'{where}: not an object. Write {{"prompt": ..., "target": ...}}.')
    _check_keys(row, where)
    return make_edit(
        row["prompt"],
        row["target"],
        image=row.get("image"),
        subject=row.get("subject"),
        old=row.get("old"),
        name=row.get("id") or number,
        where=where,
    )


def _check_keys(row: Mapping[str, Any], where: str) -> None:
    known = (*REQUIRED, *OPTIONAL)
    for key in REQUIRED:
        if key not in row:
            raise BadEdit(f"{where}: '{key}' is missing. Known keys: {', '.join(known)}.")
    for key, value in row.items():
        if key not in known:
            raise BadEdit(f"{where}: unknown key '{key}'. Known keys: {', '.join(known)}.")
        if not isinstance(value, str) and not (value is None and key in OPTIONAL):
            raise BadEdit(f"{where}: '{key}' must be a text, not {json.dumps(value)[:60]}.")


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
    from errata.core.types import Edit, Prompt

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
