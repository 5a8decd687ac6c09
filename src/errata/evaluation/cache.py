"""Answers of unedited models, kept between runs under ERRATA_HOME.

The key is the hash of everything that they depend on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from errata.core import files
from errata.core.errors import DiskFull
from errata.io.states import home


def load(key: str) -> Any | None:
    """What was stored under `key`; None when there is nothing readable."""
    path = home() / "before" / f"{key}.json.gz"
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError):
        return None


def store(key: str, value: Any) -> None:
    """A cache that cannot be written is done without."""
    data = gzip.compress(files.dumps(value).encode(), compresslevel=3, mtime=0)
    try:
        files.write_bytes(home() / "before" / f"{key}.json.gz", data)
    except (OSError, DiskFull):
        return


def store_bytes(data: bytes) -> str:
    """Keeps bytes by their content and returns their name. Raises OSError, DiskFull."""
    name = hashlib.sha256(data).hexdigest()
    path = _bytes(name)
    if not path.exists():
        files.write_bytes(path, data, sync=False)
    return name


def load_bytes(name: str) -> bytes | None:
    """What was kept under `name`; None where it is not there, or not what it was."""
    try:
        data = _bytes(name).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == name else None


def _bytes(name: str) -> Path:
    return home() / "before" / "pictures" / name[:2] / name
