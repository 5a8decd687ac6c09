"""One process at a time works in a folder; the lock of a dead one is taken over."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from errata.core.errors import InUse
from errata.core.locks import locked


def holder(folder: Path, seconds: float = 30.0, name: str = "") -> int:
    """A process that holds the lock; returns when it does."""
    child = os.fork()
    if child == 0:
        try:
            with locked(folder, name=name):
                time.sleep(seconds)
        finally:
            os._exit(0)
    while not list(folder.glob(".*lock")) or not next(folder.glob(".*lock")).stat().st_size:
        time.sleep(0.002)
    return child


def test_a_second_process_is_refused_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = holder(folder)
    with pytest.raises(InUse, match=rf"in use by process {child} on .* since "), locked(folder):
        pass
    with locked(folder, name="another"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / ".lock").exists()  # the dead process left its file
    with locked(folder), locked(folder):  # its own process may enter again
        (folder / "x").write_text("")
    assert os.listdir(folder) == ["x"]


def test_the_lock_of_a_dead_process_is_waited_for_until_its_children_have_let_it_go(
    tmp_path: Path,
) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            (handle,) = (
                fd for fd in os.listdir("/proc/self/fd")
                if os.path.realpath(f"/proc/self/fd/{fd}") == str(tmp_path / ".lock")
            )  # fmt: skip
            os.dup(int(handle))
            if os.fork() == 0:  # as a program that is just being started
                time.sleep(0.4)
                os._exit(0)
            (tmp_path / "ready").write_text("")
            time.sleep(30)
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass


def test_one_that_writes_little_is_waited_for(tmp_path: Path) -> None:
    child = holder(tmp_path, 0.3)
    with locked(tmp_path, wait=10):
        pass
    os.waitpid(child, 0)


def test_another_thread_is_refused(tmp_path: Path) -> None:
    refused = []

    def enter() -> None:
        try:
            with locked(tmp_path):
                pass
        except InUse as e:
            refused.append(str(e))

    with locked(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
