"""Files are written whole or not at all, and read with one line that says what is wrong."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.core import files
from errata.core.errors import BadOutput, BadRun, DiskFull
from errata.core.formats.json_value import parse_json
from errata.core.types import Edit


def killed(work: Callable[[], None], at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `work` in a fork that is killed at the first call of `os.<at>` after the first."""
    child = os.fork()
    if child == 0:
        real, calls = getattr(os, at), 0

        def stop(*arguments: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        setattr(os, at, stop)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_folder_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    folder = tmp_path / "f"
    old, new = ({n: v for n in ("a.json", "b.bin", "c.md")} for v in (b"old", b"new"))
    files.write_folder(folder, old)
    (folder / "notes.txt").write_text("mine")
    killed(lambda: files.write_folder(folder, new), at, monkeypatch)
    files.finish_folder(folder)
    there = {n: (folder / n).read_bytes() for n in old}
    assert there == (old if at == "fsync" else new)
    files.write_folder(folder, new)
    assert {n: (folder / n).read_bytes() for n in new} == new
    assert sorted(os.listdir(folder)) == ["a.json", "b.bin", "c.md", "notes.txt"]


def test_a_killed_write_leaves_the_old_file_and_its_leftover_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("n" * 250)
    files.write_bytes(path, b"old")

    def twice() -> None:
        files.write_bytes(tmp_path / "other", b"")
        files.write_bytes(path, b"new")

    killed(twice, "fsync", monkeypatch)
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 3
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and sorted(os.listdir(tmp_path)) == [path.name, "other"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_folder(tmp_path / "f", {"a": b"old"})
    files.write_bytes(tmp_path / "g", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        files.write_folder(tmp_path / "f", {"a": b"new"})
    with pytest.raises(DiskFull):
        files.write_bytes(tmp_path / "g", b"new")
    assert (tmp_path / "f" / "a").read_bytes() == (tmp_path / "g").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["f", "g"] and os.listdir(tmp_path / "f") == ["a"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    long, below = tmp_path / ("x" * 300), tmp_path / "file" / "below"
    nul = Path(f"{tmp_path}/a\0b")
    for path in (Path("/dev/full"), Path("/dev/null"), tmp_path, long, below, nul):
        for check in (files.check_file, lambda p: files.write_bytes(p, b"x")):
            with pytest.raises((BadOutput, DiskFull)):
                check(path)
    for path in (tmp_path / "file", below, long, Path("/proc/none"), nul, tmp_path / "loop"):
        with pytest.raises((BadOutput, DiskFull)):
            files.check_folder(path)
    files.check_folder(tmp_path / "a" / "b")
    files.check_file(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]  # a check writes nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expecting property name"),
        ("NaN", "NaN is not finite"),
        ("[1e999]", "is not finite"),
        ("-Infinity", "is not finite"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 150 + "1" + "}" * 150, "nested too deeply"),
        ("1" * 5000, "too many digits"),
        ('"\\ud800"', "half a surrogate pair"),
    ],
)
def test_json_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_json_that_can(tmp_path: Path) -> None:
    assert parse_json('["\\ud83d\\ude00", 1e300, {"a": []}]') == [
        "\U0001f600",
        1e300,
        {"a": []},
    ]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{}\xff", None, "folder", "loop", "zero"])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "a.json"
    if content == "folder":
        path.mkdir()
    elif content == "loop":
        path.symlink_to(path)
    elif content == "zero":
        path.symlink_to("/dev/zero")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(BadRun, match=r"a\.json"):
        files.read_json(path)


def test_a_wrong_field_is_named_in_our_words(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, said in (
        ('{"prompt": {"segments": ["x"]}}', "'target' is missing"),
        ('{"prompt": {"segments": ["x"]}, "target": 5}', "'target' is 5, not a text"),
        ("7", "7, not an object"),
    ):
        path.write_text(text)
        with pytest.raises(BadRun, match=said) as error:
            files.read_as(Edit, path)
        assert "pydantic" not in str(error.value) and "Input should" not in str(error.value)


def test_a_line_that_is_no_utf_8_is_not_changed_silently(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = b'{"prompt": {"segments": ["x"]}, "target": "y"}\n'
    path.write_bytes(line.replace(b"y", b"\xff") + line)
    with pytest.raises(BadRun, match=r"line 1.*UTF-8"):
        files.read_lines(path, Edit)
    path.write_bytes(line + line[:20] + b"\xc3")  # cut off by a kill, within a letter
    assert len(files.read_lines(path, Edit)) == 1
