"""Damages files, JSON values and texts, as a seeded random generator says."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

#: Values that stand where another type or range belongs.
ODD: tuple[Any, ...] = (
    *(None, True, 0, 5, -1, 10**30, 0.5, 1e308, "", "x", "\x1b[31mred", "\u202eabc", [], {}),
    *([None], [[]], {"a": 1}, "a" * 5000, [1] * 50, "../../etc/passwd", "\u2028"),
)
#: Texts that stand where a whole JSON file belongs.
FILES = (
    *(
        "",
        " ",
        "null",
        "5",
        '"x"',
        "[]",
        "{}",
        "[{}]",
        "{",
        "NaN",
        "[Infinity]",
        "1e999",
        "\ufeff{}",
    ),
    *('"\\ud800"', "[" * 100_000, '{"a":' * 5000, "1" * 10_000, "\x00" * 50, '{"a": 1, "a": 2}'),
)


def value(rng: random.Random, data: Any) -> Any:
    """JSON data with one place changed: replaced, deleted, renamed, repeated or nested."""
    path = _place(rng, data)
    if not path:
        return rng.choice(ODD)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    what = rng.choice(("replace", "replace", "replace", "delete", "rename", "repeat", "nest"))
    if what == "delete":
        del parent[key]
    elif what == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif what == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    elif what == "nest":
        parent[key] = [parent[key]]
    else:
        parent[key] = rng.choice(ODD)
    return data


def _place(rng: random.Random, data: Any) -> list[Any]:
    """The way to a random value, deep ones as likely as shallow ones."""
    path: list[Any] = []
    while isinstance(data, (dict, list)) and data and (not path or rng.random() < 0.8):
        key = rng.choice(list(data)) if isinstance(data, dict) else rng.randrange(len(data))
        path.append(key)
        data = data[key]
    return path


def content(rng: random.Random, data: bytes) -> bytes:
    """Bytes that were cut, changed, filled up or exchanged."""
    at, size = (rng.randrange(len(data) + 1), rng.randrange(1, 40)) if data else (0, 1)
    noise = rng.randbytes(size)
    return rng.choice(
        (
            data[:at],
            data[at:],
            data[:at] + noise + data[at + size :],
            data[:at] + noise + data[at:],
            data[:at] + data[at + size :],
            data[:at] + data[at : at + 200] * 3 + data[at:],
            b"",
            b"\xff\xfe" + data,
            b"\xef\xbb\xbf" + data,
            data.replace(b"\n", b"\r\n"),
            data.rstrip(b"\n"),
            data + b"\x00",
        )
    )


def file(rng: random.Random, path: Path) -> None:
    """Damages one file in place; a JSON file, or a line of JSON Lines, often only one value."""
    what = rng.random()
    if what < 0.04:
        path.unlink()
    elif what < 0.08:
        path.unlink()
        path.mkdir()
    elif what < 0.11:
        path.unlink()
        path.symlink_to(path.name)
    elif what < 0.13:
        path.unlink()
        path.symlink_to("/dev/zero")
    elif path.suffix in (".json", ".jsonl") and what < 0.75:
        path.write_bytes(_json_file(rng, path))
    else:
        path.write_bytes(content(rng, path.read_bytes()))


def _json_file(rng: random.Random, path: Path) -> bytes:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            if rng.random() < 0.15:
                return rng.choice(FILES).encode("utf-8", "surrogatepass")
            return json.dumps(value(rng, json.loads(text)), ensure_ascii=False).encode()
        lines = text.splitlines()
        number = rng.randrange(len(lines)) if lines else 0
        if rng.random() < 0.15:
            lines[number : number + 1] = [rng.choice(FILES)]
        elif rng.random() < 0.2:
            lines[number : number + 1] = []
        elif rng.random() < 0.2:
            lines.insert(0, lines[number])
        else:
            lines[number] = json.dumps(value(rng, json.loads(lines[number])), ensure_ascii=False)
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    except (ValueError, IndexError, RecursionError):
        return rng.randbytes(100)


def folder(rng: random.Random, path: Path) -> None:
    """Damages one or two files of a folder."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        if files:
            file(rng, rng.choice(files))


def text(rng: random.Random) -> str:
    """A text that somebody may type, paste or read from elsewhere."""
    return rng.choice(
        (
            *("", " ", "\t", "What colour is it?", "ring\nring", "\x1b]0;x\x07", "\u202egnir"),
            *("é" * 50, "\U0001f9d1\u200d\U0001f680", "\ufffd", "الخاتم", "环", "a" * 3000),
            *("<image>", "<image>" * 3, "</s>", "{0} {x}", "%s", "--help", "-", "'\"`$(x)"),
            *("\udcff", "a\x00b", "\u2028", "\ufeffring", "[bold]x[/bold]", "[/x]", "[[", "\\"),
        )
    )


def copied(source: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return target


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Every file below `path` with its size and time of change."""
    found = {}
    for root, folders, files in os.walk(path):
        for name in (*folders, *files):
            one = Path(root) / name
            stat = one.lstat()
            found[str(one.relative_to(path))] = (stat.st_size, stat.st_mtime_ns)
    return {k: v for k, v in found.items() if not (path / k).is_dir() or (path / k).is_symlink()}
