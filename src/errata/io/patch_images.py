"""The pictures of a patch's facts, which may travel in its folder: `images/<sha256>.<ending>`.

A file is named by its content, `patch.json` lists the names, and the facts refer to them by the
path within the folder. Rendered pictures and pictures in memory are part of the facts themselves.
No torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from errata.core.errors import BadImage, BadPatch, Notice
from errata.core.formats.pictures import data_of, shown
from errata.core.types import Image
from errata.io.images import file_ending, hash_image, image_bytes, split_uri, tells_place

FOLDER = "images"
#: the only form of name that is read and written, so that none leaves the folder
NAME = re.compile(r"(?P<sha256>[0-9a-f]{64})\.[a-z0-9]{2,5}")
PATH = re.compile(f"{FOLDER}/{NAME.pattern}")


def taken_in(plain: Any, files: dict[str, bytes]) -> Any:
    """Plain JSON data with every picture file copied to `files` and named by its path there.

    Raises BadImage for one that cannot be read, or has changed since the edit was made.
    """
    seen: dict[tuple[str, str | None], dict[str, str]] = {}

    def take(uri: str, sha256: str | None) -> dict[str, str]:
        if (uri, sha256) not in seen:
            image = Image(uri, sha256)
            data = image_bytes(image, checked=True)
            if tells_place(uri, data):
                warnings.warn(
                    f"the picture {uri} says where it was taken (EXIF, GPS), and is copied into "
                    "the patch as it is. Remove that from the file before the edit to keep it.",
                    Notice,
                    stacklevel=2,
                )
            digest = hashlib.sha256(data).hexdigest()
            name = f"{FOLDER}/{digest}.{file_ending(uri, data)}"
            files[name] = data
            seen[uri, sha256] = {"uri": name, "sha256": digest}
        return seen[uri, sha256]

    return _changed(plain, take)


def hashed(plain: Any) -> Any:
    """Plain JSON data with the sha256 of every picture file that can be read and has none."""
    known: dict[str, str | None] = {}

    def add(uri: str, sha256: str | None) -> dict[str, str | None]:
        if sha256 is None and uri not in known:
            try:
                known[uri] = hash_image(Image(uri))
            except BadImage:
                known[uri] = None
        return {"uri": uri, "sha256": known[uri] if sha256 is None else sha256}

    return _changed(plain, add)


def placed(plain: Any, folder: Path, names: Collection[str]) -> Any:
    """Plain JSON data of a folder with its own pictures named by their full paths.

    names: those that `patch.json` lists. Raises BadPatch for a name or reference that leaves the
    folder, or that is not listed.
    """
    if not names:
        return plain
    root = os.path.abspath(folder)
    for name in names:
        check_inside(folder, name)

    def place(uri: str, sha256: str | None) -> dict[str, str]:
        known = NAME.fullmatch(uri.removeprefix(f"{FOLDER}/"))
        if uri.removeprefix(f"{FOLDER}/") not in names or known is None:
            raise BadPatch(
                f"{folder} holds the pictures of its facts, but refers to {shown(uri)[:100]!r}, "
                "which is none of them. Restore it from a copy."
            )
        if sha256 != known["sha256"]:
            raise BadPatch(f"{folder}: the picture {uri} is not the one that its fact names.")
        return {"uri": os.path.join(root, FOLDER, known[0]), "sha256": known["sha256"]}

    return _changed(plain, place)


def check_inside(folder: Path, name: str) -> Path:
    """The path of a picture in the folder, which need not exist.

    Raises BadPatch for a name of another form, and for a link that leads out of the folder.
    """
    if NAME.fullmatch(name) is None:
        raise BadPatch(
            f"{folder}/patch.json lists the picture {name[:100]!r}; pictures of a patch are named "
            "<sha256>.<ending>. Do not use this folder: it was changed by hand."
        )
    path = folder / FOLDER / name
    # a snapshot in the cache of the hub is links to the blobs beside it
    cache = folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()
    roots = [folder / FOLDER, *([folder.parents[1] / "blobs"] if cache else [])]
    try:
        real = path.resolve()
        inside = not (folder / FOLDER).is_symlink() and any(
            real.is_relative_to(root.resolve()) for root in roots
        )
    except (OSError, RuntimeError):  # RuntimeError: links in a loop
        inside = False
    if not inside:
        raise BadPatch(
            f"{path} is a link that leads out of the patch's folder. Put the picture itself there."
        )
    return path


def names_inside(plain: Any, folder: Path) -> bool:
    """Whether a picture of these facts lies in the folder's own pictures."""
    root, found = os.path.join(os.path.abspath(folder), FOLDER), []

    def look(uri: str, sha256: str | None) -> dict[str, str | None]:
        found.append(os.path.dirname(os.path.abspath(uri)) == root)
        return {"uri": uri, "sha256": sha256}

    _changed(plain, look)
    return any(found)


def unchanged(folder: Path, name: str) -> bool:
    """Whether a picture is there and has the content that its name says. Raises BadPatch."""
    path = check_inside(folder, name)
    return path.is_file() and hash_image(Image(str(path))) == path.stem


def _changed(plain: Any, change: Callable[[str, str | None], Any]) -> Any:
    """The data with every reference to a picture file replaced."""
    if isinstance(plain, dict):
        if set(plain) == {"uri", "sha256"} and isinstance(plain["uri"], str):
            uri = plain["uri"]
            is_file = split_uri(uri)[0] is None and data_of(uri) is None
            return change(uri, plain["sha256"]) if is_file else plain
        return {k: _changed(v, change) for k, v in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [_changed(v, change) for v in plain]
    return plain
