"""Where a patch may be written: an empty or new folder, or one that holds a patch. No torch."""

from __future__ import annotations

from pathlib import Path

from errata.core.errors import BadPatch
from errata.core.files import check_folder, finish_folder, visible


def holds_patch(folder: Path) -> bool:
    """Whether there is a patch in the folder; False for an empty folder or none.

    Raises BadPatch for a folder that holds other things, whose README.md would be lost, and
    BadOutput or DiskFull for one that cannot be written to.
    """
    check_folder(folder, BadPatch)
    if folder.is_dir():
        finish_folder(folder)
    names = visible(folder)
    if names and "patch.json" not in names:
        raise BadPatch(
            f"{folder} is not empty and holds no patch{_what(names)}. Choose another folder, or "
            "empty it yourself."
        )
    return bool(names)


def _what(names: list[str]) -> str:
    """What a folder with these files holds, where that is clear."""
    known = {"adapter_config.json": "an adapter of peft", "config.json": "a model",
             "state.json": "the state of an editor"}  # fmt: skip
    found = next((what for file, what in known.items() if file in names), "")
    return f" but {found}" if found else ""
