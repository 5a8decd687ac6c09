"""Locks of folders between processes. No torch.

A lock is the file `.lock` in the folder, with the holder's process id, host and command. The system
frees it when its process ends, also by a kill, so that the lock of a dead process is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from errata.core.errors import InUse
from errata.core.files import is_running, writing

#: Seconds that one who only writes a few files waits for another one who does so too.
SHORT = 20.0
#: Seconds that a lock is waited for whose holder is dead. A process that it has just started, such
#: as git, keeps the lock until it becomes another program.
ENDING = 5.0


@contextmanager
def locked(folder: Path, *, name: str = "", wait: float = 0.0) -> Iterator[None]:
    """Only one process at a time is in here with the same folder and name; it may enter again.

    The folder is made if it is missing, and removed again if nothing was written in it. Where the
    file system has no locks, none is taken. Raises InUse after `wait` seconds if a process that
    lives holds the lock.
    """
    from filelock import FileLock, Timeout

    with writing(folder):
        made = _made(folder)
        path = folder.resolve() / (f".{name}.lock" if name else ".lock")
        lock: FileLock | None = FileLock(path, is_singleton=True, on_acquired=_sign)
        assert lock is not None
        try:
            try:
                lock.acquire(timeout=wait)
            except Timeout:
                if _is_held(path):
                    raise
                lock.acquire(timeout=ENDING)
        except Timeout:
            raise InUse(
                f"{folder} is in use by {_holder(path)}. Wait until it ends, or choose another "
                "folder."
            ) from None
        except (NotImplementedError, OSError) as e:
            if isinstance(e, PermissionError):
                raise
            lock = None  # a file system without locks
    try:
        yield
    finally:
        if lock is not None:
            if lock.lock_counter == 1:
                with suppress(OSError):
                    path.unlink()  # while it is held: who waits for it sees that it is gone
            lock.release()
        for one in made:
            with suppress(OSError):
                one.rmdir()


def _made(folder: Path) -> list[Path]:
    """Makes the folder; returns those that were missing, the deepest first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _sign(handle: int) -> None:
    """Writes who holds the lock into its file."""
    command = " ".join(["errata", *sys.argv[1:]])[:300]
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command.encode("utf-8", "replace").decode(),
    }
    os.truncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _is_held(path: Path) -> bool:
    """Whether the lock names a process that lives, as far as can be known here.

    False also where it names none: its holder has just come, or has just gone.
    """
    try:
        who = json.loads(path.read_bytes()[:4096])
        return who["host"] != socket.gethostname() or is_running(int(who["pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_bytes()[:4096])
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
