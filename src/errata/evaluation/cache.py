"""Cache of the unedited models' answers between runs, in ERRATA_HOME/before.

The key is the hash of everything that the answers depend on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from errata.core import files
from errata.core.errors import BadOutput, DiskFull, UserError
from errata.io.states import home, warn_home


def load(key: str) -> Any | None:
    """The value stored under `key`; None if there is none, or it cannot be read."""
    path = home() / "before" / f"{key}.json.gz"
    try:
        return json.loads(gzip.decompress(files.read_bytes(path)))
    except (UserError, OSError, EOFError, ValueError, RecursionError, zlib.error):
        return None


def store(key: str, value: Any) -> None:
    """Stores `value`; only warns if the cache cannot be written."""
    data = gzip.compress(files.dumps(value).encode(), compresslevel=3, mtime=0)
    try:
        files.write_bytes(home() / "before" / f"{key}.json.gz", data)
    except (BadOutput, DiskFull):
        warn_home()


def store_bytes(data: bytes) -> str:
    """Stores bytes under their sha256, which is returned. Raises BadOutput, DiskFull."""
    name = hashlib.sha256(data).hexdigest()
    path = _bytes(name)
    if not path.exists():
        files.write_bytes(path, data, sync=False)
    return name


def load_bytes(name: str) -> bytes | None:
    """The bytes with this sha256; None if they are missing or damaged."""
    try:
        data = files.read_bytes(_bytes(name))
    except UserError:
        return None
    return data if hashlib.sha256(data).hexdigest() == name else None


def _bytes(name: str) -> Path:
    return home() / "before" / "pictures" / name[:2] / name
