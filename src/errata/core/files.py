"""Reads and writes files: whole or not at all, or appended by line; and versions. No torch.

Every command writes through `write_bytes`, `write_folder` or `append_lines`, and checks its outputs
with `check_file` or `check_folder` before it starts to work. Every file of errata's own formats is
read through `read_json` or `read_lines`, which say in one line what is wrong with it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from errata._version import __version__
from errata.core.errors import BadOutput, BadRun, DiskFull, UserError
from errata.core.formats.json_lines import BadLine, json_lines
from errata.core.formats.json_value import parse_json
from errata.core.formats.own_files import own_lines
from errata.core.formats.validation import why
from errata.core.types import from_json, to_json

T = TypeVar("T")

#: a path as the public functions take it
FilePath = str | os.PathLike[str]
#: Most bytes of a regular file, and of a pipe or device, that are read as text.
MOST, MOST_OF_A_PIPE = 2**30, 2**26
PIECE = 2**20  # bytes of lines that are read at once
#: A folder is written in here, then renamed to READY, then its files are moved to their places.
STAGE, READY = ".writing", ".ready"
_FULL = (errno.ENOSPC, errno.EDQUOT)


# -- writing ------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing `path` into DiskFull or BadOutput."""
    try:
        yield
    except OSError as e:
        if e.errno in (*_FULL, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO):
            raise DiskFull(
                f"cannot write {path}: {e.strerror}. Free some space or choose another folder, "
                "then repeat the same command: finished work is kept."
            ) from e
        raise BadOutput(f"cannot write {path}: {e.strerror or e}. Choose another path.") from e
    except ValueError as e:  # a NUL or a lone surrogate in the name
        raise BadOutput(f"cannot write {str(path)!r}: {e}. Choose another path.") from e


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renames.

    What killed processes left beside it is removed. sync: whether it must outlive a power failure;
    False for one of many small files. Raises DiskFull, BadOutput.
    """
    check_file(path, write=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if sync:
            _remove_left_over(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_temporary(path))
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


def _temporary(path: Path) -> str:
    """The beginning of a temporary name: it says for which file, and by which process."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    name = path.name.encode()[:150].decode("utf-8", "ignore")
    return f".{name}.{host}-{os.getpid()}-"


def _remove_left_over(path: Path) -> None:
    """Removes temporary files for `path` whose process, on this machine, is no more."""
    mine = _temporary(path)
    start = mine.rsplit("-", 2)[0] + "-"
    for name in os.listdir(path.parent):
        if name.startswith(start) and not name.startswith(mine):
            pid = name[len(start) :].partition("-")[0]
            if pid.isdigit() and not is_running(int(pid)):
                left = path.parent / name
                with suppress(OSError):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def is_running(pid: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes all these files of a folder, or none; other files in it are kept.

    A name may be that of a file in a subfolder (`images/a.png`). They are written and synced in a
    hidden folder inside. One rename decides that they are whole; then they are moved to their
    places, JSON files last. If the process is killed in between,
    `finish_folder`, which readers and writers call, moves the rest. Raises DiskFull, BadOutput.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        finish_folder(folder)
        shutil.rmtree(folder / STAGE, ignore_errors=True)
        stage = folder / STAGE
        stage.mkdir()
        try:
            for name, data in contents.items():
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                with open(stage / name, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
            os.rename(stage, folder / READY)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
        finish_folder(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes its place when the block ends without an error.

    For files too large to be held in memory. What was in `folder` is gone then; until then, and
    after an error, it is as it was. What killed processes left is removed. Raises DiskFull,
    BadOutput.
    """
    target = folder.absolute()
    former = target.with_name(f".{target.name}.former")
    with writing(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(target)
        if former.exists():  # killed between the two renames below, or behind them
            shutil.rmtree(former) if target.exists() else os.rename(former, target)
        stage = Path(tempfile.mkdtemp(dir=target.parent, prefix=_temporary(target)))
    try:
        yield stage
        with writing(folder):
            for file in stage.iterdir():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
            os.chmod(stage, 0o755)
            if target.exists():
                os.rename(target, former)
            os.rename(stage, target)
            shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def finish_folder(folder: Path) -> None:
    """Moves files to their places that a killed `write_folder` has written whole."""
    ready = folder / READY
    if not ready.is_dir():
        return
    written = [f for f in ready.rglob("*") if not f.is_dir()]
    for file in sorted(written, key=lambda f: (f.suffix == ".json", f.name)):
        place = folder / file.relative_to(ready)
        if place.parent.is_symlink():
            raise OSError(errno.ELOOP, f"{place.parent} is a link to another folder")
        with suppress(FileNotFoundError):  # another process finishes the same folder
            place.parent.mkdir(exist_ok=True)
            os.replace(file, place)
    with suppress(OSError):
        for inner in [f for f in ready.iterdir() if f.is_dir()]:
            inner.rmdir()
        ready.rmdir()


def visible(folder: Path) -> list[str]:
    """The names in a folder without hidden ones, which are errata's locks and leftovers of kills.

    Empty if there is no folder. Raises BadOutput where it cannot be read.
    """
    try:
        return sorted(n for n in os.listdir(folder) if not n.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise BadOutput(f"{folder} cannot be read ({e.strerror}). Choose another --out.") from None


def check_file(path: Path, *, write: bool = True) -> None:
    """Raises BadOutput or DiskFull if a file cannot be written at `path`.

    write: whether to try it, with an empty temporary file in the nearest folder that exists.
    """
    with writing(path):
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise BadOutput(f"{path} is a folder. Give the name of a file.")
    if not stat.S_ISREG(mode):
        raise BadOutput(f"{path} is a device or a pipe, not a file. Give the name of a file.")
    if write:
        _try_writing(path.parent)


def check_folder(folder: Path, error: type[UserError] = BadOutput) -> None:
    """Raises `error` for a file where `folder` must be, which need not exist.

    Raises BadOutput or DiskFull if no files can be written in it.
    """
    with writing(folder):
        try:
            found = stat.S_ISDIR(os.stat(folder).st_mode)
        except FileNotFoundError:
            found = True
        except NotADirectoryError:
            found = False
    if not found:
        file = next((p for p in (folder, *folder.parents) if exists(p)), folder)
        raise error(f"{file} is a file. Give the name of a folder.")
    _try_writing(folder)


def _try_writing(folder: Path) -> None:
    existing = next((p for p in (folder, *folder.parents) if exists(p)), Path("."))
    if not existing.is_dir():
        raise BadOutput(f"{existing} is a file. Give a path below a folder.")
    with writing(folder):
        handle, name = tempfile.mkstemp(dir=existing, prefix=".errata-")
        os.close(handle)
        os.unlink(name)


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
    from importlib.metadata import version

    return version(package)


def git_commit() -> str:
    """The git commit of this source tree; "" where there is none."""
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def json_bytes(data: Any) -> bytes:
    """The content of a JSON file."""
    return (dumps(data, indent=1) + "\n").encode()


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, json_bytes(data))


def lines_of(values: Iterable[Any]) -> bytes:
    """One JSON line per value."""
    return "".join(dumps(to_json(v)) + "\n" for v in values).encode()


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Appends one JSON line per value in a single write, then syncs."""
    append_bytes(path, lines_of(values))


def append_bytes(path: Path, data: bytes) -> None:
    """Appends in a single write, then syncs."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())


def whole_lines(path: Path) -> None:
    """Cuts off an unfinished last line (after a kill), so that more lines can be appended."""
    if not path.exists():
        return
    data = read_bytes(path)
    if not data.endswith(b"\n"):
        with writing(path):
            os.truncate(path, data.rfind(b"\n") + 1)


# -- reading ------------------------------------------------------------------------------------


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; False also for what can be no path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a regular file at `path`; False also for what can be no path."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether there is a folder at `path`; False also for what can be no path."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def shortened(value: Any, most: int = 60) -> str:
    """A value of a file for a message."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def read_bytes(path: Path, error: type[UserError] = BadRun) -> bytes:
    """The content of a file of at most MOST bytes. Raises `error` in one line."""
    try:
        with open(path, "rb") as f:
            info = os.fstat(f.fileno())
            regular = stat.S_ISREG(info.st_mode)
            most = MOST if regular else MOST_OF_A_PIPE
            if info.st_size <= most:
                data = f.read() if regular else f.read(most + 1)
                if len(data) <= most:
                    return data
    except (FileNotFoundError, NotADirectoryError):
        raise error(
            f"{path} does not exist. Check the path; an errata folder that lacks a file is "
            "damaged: restore it from a copy."
        ) from None
    except OSError as e:
        raise error(f"{path} cannot be read ({e.strerror}). Check the path.") from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise error(f"{str(path)!r} is not a path. Check it.") from None
    raise error(f"{path} has more than {most:,} bytes, which is no file that errata reads.")


def check_regular(path: Path, error: type[UserError] = BadRun) -> None:
    """Raises `error` for a device or a pipe, which a reader would read without an end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says so
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{path} is a device or a pipe, not a file. Save its content to a file first.")


def read_text(path: Path, error: type[UserError] = BadRun) -> str:
    """The text of a file, which is UTF-8. Raises `error` in one line."""
    try:
        return read_bytes(path, error).decode()
    except UnicodeDecodeError as e:
        raise error(
            f"{path} is not text in UTF-8 (byte {e.start}). Restore it from a copy, or save it as "
            "UTF-8."
        ) from None


def read_json(path: Path, error: type[UserError] = BadRun) -> Any:
    """Raises `error` when the file is missing or is not JSON."""
    text = read_text(path, error)
    try:
        return parse_json(text)
    except ValueError as e:
        raise error(
            f"{path} is not valid JSON ({e}). Restore it from a copy or run the command again."
        ) from None


def read_as(cls: type[T], path: Path, error: type[UserError] = BadRun) -> T:
    """A JSON file as a value of `cls`. Raises `error` naming the first field that is wrong."""
    return checked(cls, read_json(path, error), path, error)


def checked(cls: type[T], data: Any, path: Path, error: type[UserError] = BadRun) -> T:
    """The content of the file `path` as a value of `cls`. Raises `error`."""
    try:
        return from_json(cls, data)
    except ValueError as e:
        raise error(
            f"{path} does not have the fields that errata writes ({why(e)}). Restore it from a "
            "copy or run the command again."
        ) from None


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """The values of all lines; none if there is no file.

    An unfinished last line (after a kill) is ignored; any other bad line raises BadRun.
    """
    if not path.exists():
        return []
    values: list[T] = []
    number = passed = 0
    try:
        for data in _whole_lines(read_bytes(path)):
            unfinished = not data.endswith(b"\n")
            own = None if unfinished else own_lines(cls, data)
            if own is not None:
                values += own
                passed += data.count(b"\n")
                continue
            try:
                for line, row in json_lines(data):
                    number = passed + line
                    values.append(from_json(cls, row))
            except ValueError:
                if unfinished:
                    break
                raise
            passed += data.count(b"\n")
    except ValueError as e:
        number = passed + e.number if isinstance(e, BadLine) else number
        raise BadRun(
            f"{path}, line {number}, cannot be read ({why(e)}). Delete the run and repeat it."
        ) from None
    return values


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """A file in pieces of whole lines, and at last what stands behind the last line break.

    One that does not begin with a line of UTF-8, as errata's own do, is one piece.
    """
    end = data.rfind(b"\n") + 1
    at = 0
    while at < end:
        until = data.rfind(b"\n", at, at + PIECE) + 1 or data.find(b"\n", at) + 1
        until = until if data[:1] == b"{" and data[1:2] != b"\0" else end
        yield data[at:until]
        at = until
    if at < len(data):
        yield data[at:]
