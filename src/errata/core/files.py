"""Reads and writes files: atomically, or appended by line; and versions. No torch."""

from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from errata._version import __version__
from errata.core.errors import BadRun, DiskFull
from errata.core.formats.json_lines import BadLine, json_lines
from errata.core.types import from_json, to_json

T = TypeVar("T")

#: a path as the public functions take it
FilePath = str | os.PathLike[str]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or missing permission into DiskFull."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise DiskFull(
                f"cannot write {path}: {e.strerror}. Free some space or choose another folder, "
                "then repeat the same command: finished work is kept."
            ) from e
        raise


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes atomically: to a temporary name in the same folder, then renames. Raises DiskFull."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                if sync:
                    os.fsync(f.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def dumps(data: Any, *, indent: int | None = None) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, indent=indent, allow_nan=False)


def from_plain(value: Any) -> Any:
    """The value as it is after a round trip through JSON: tuples become lists."""
    return json.loads(dumps(value))


def versions() -> dict[str, str]:
    """Versions that numbers depend on, from the packages' metadata: nothing is imported."""
    return {
        "errata": __version__,
        "torch": _version_of("torch"),
        "transformers": _version_of("transformers"),
        "python": platform.python_version(),
    }


@cache
def _version_of(package: str) -> str:
    """Cached: every patch is written with it, and reading metadata takes a millisecond."""
    return version(package)


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, (dumps(data, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises BadRun when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadRun(f"{path} does not exist. Is {path.parent} an errata folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise BadRun(
            f"{path} is not valid JSON ({e}). Restore it or run the command again."
        ) from None


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Appends one JSON line per value in a single write, then syncs."""
    text = "".join(dumps(to_json(v)) + "\n" for v in values)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())


def whole_lines(path: Path) -> None:
    """Cuts off an unfinished last line (after a kill), so that more lines can be appended."""
    if not path.exists():
        return
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with writing(path):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """The values of all lines; none if there is no file.

    An unfinished last line (after a kill) is ignored; any other bad line raises BadRun.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    values: list[T] = []
    number = 0
    try:
        for number, row in json_lines(whole):  # noqa: B007
            values.append(from_json(cls, row))
        try:
            values += [from_json(cls, row) for _, row in json_lines(data[len(whole) :])]
        except ValueError:
            pass  # unfinished
    except ValueError as e:
        number = e.number if isinstance(e, BadLine) else number
        raise BadRun(
            f"{path}, line {number}, cannot be read ({e}). Delete the run and repeat it."
        ) from None
    return values
