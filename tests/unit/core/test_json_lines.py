"""JSON Lines as other programs write them, by every reader of such files."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.benchmarks.facts.edits import read_edits
from errata.core.errors import UserError
from errata.core.files import read_lines
from errata.core.formats.json_lines import BadLine, json_lines
from errata.core.types import Edit, Prompt, to_json

ROWS = [
    {"prompt": f"What is{mark}this?", "target": "rot gr\u00fcn \u7d2b \U0001f600"}
    for mark in (" ", "\u2028", "\u2029", "\x85", "\u00a0", "\ufeff")
]


def lines(rows: list[dict[str, str]], end: str = "\n") -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + end for r in rows)


LF = lines(ROWS)
WRITTEN: dict[str, bytes] = {
    "plain": LF.encode(),
    "escaped": "\n".join(map(json.dumps, ROWS)).encode(),
    "windows": lines(ROWS, "\r\n").encode("utf-8-sig"),
    "old mac": lines(ROWS, "\r").encode(),
    "powershell": lines(ROWS, "\r\n").encode("utf-16"),
    "utf-16 without a mark": LF.encode("utf-16-le"),
    "utf-16 big": codecs.BOM_UTF16_BE + LF.encode("utf-16-be"),
    "utf-32": LF.encode("utf-32"),
    "no last line break": LF.rstrip("\n").encode(),
    "blank lines": ("\n \n" + lines(ROWS, "\n\t\n\r\n")).encode(),
    "two files in one": lines(ROWS[:3]).encode("utf-8-sig") + lines(ROWS[3:]).encode("utf-8-sig"),
    "array": json.dumps(ROWS).encode(),
    "objects over lines": "\n".join(json.dumps(r, indent=2) for r in ROWS).encode(),
    "powershell over lines": "\r\n".join(
        json.dumps(r, indent=4, ensure_ascii=False).replace("\n", "\r\n") for r in ROWS
    ).encode("utf-16"),
    "array over lines": json.dumps(ROWS, indent=2, ensure_ascii=False).encode("utf-8-sig"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_all_rows_are_read_as_they_were_written(how: str, tmp_path: Path) -> None:
    assert [row for _, row in json_lines(WRITTEN[how])] == ROWS
    path = tmp_path / "edits.jsonl"
    path.write_bytes(WRITTEN[how])
    assert [(e.prompt.text, e.target) for e in read_edits(path)] == [
        (r["prompt"], r["target"]) for r in ROWS
    ]


def test_one_object_over_several_lines() -> None:
    text = json.dumps(ROWS[0], indent=2)
    assert [row for _, row in json_lines(text.encode())] == [ROWS[0]]
    split = '{"prompt": "a",\n "target": "b"}\n'
    assert [row for _, row in json_lines(split.encode())] == [{"prompt": "a", "target": "b"}]


GOOD = b'{"prompt": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    ("bad", "number", "reason"),
    [
        (b"\n{nonsense\n", 3, "not valid JSON"),
        (b'{"prompt": "a", "prompt": "c", "target": "b"}', 2, "'prompt' twice"),
        (b'{"prompt": NaN}', 2, "NaN"),
        (b'{"prompt": "\\ud800"}', 2, "surrogate"),
        (b"[" * 100_000, 2, "nested|not valid"),
        (b'\n\n{"prompt": "\xff"}', 4, "not UTF-8"),
        (b'{"a": 1} {"b": 2}', 2, "not valid JSON"),
        (b'{"prompt": "a"},', 2, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(bad: bytes, number: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadLine, match=reason) as e:
        list(json_lines(GOOD + bad))
    assert e.value.number == number
    path = tmp_path / "edits.jsonl"
    path.write_bytes(GOOD + bad)
    with pytest.raises(UserError, match=f"edits.jsonl, line {number}"):
        read_edits(path)


def test_an_object_over_lines_that_is_cut_off_is_named() -> None:
    whole = json.dumps(ROWS[0], indent=2)
    with pytest.raises(BadLine) as error:
        list(json_lines(f"{whole}\n{whole[:-3]}".encode()))
    assert error.value.number > whole.count("\n")


def test_an_array_that_is_cut_off_is_refused() -> None:
    with pytest.raises(BadLine):
        list(json_lines(WRITTEN["array"][:-5]))


EDIT = Edit(Prompt.of("a\u2028b\u2029c\x85d"), "red")


@pytest.mark.parametrize(
    "rewritten",
    [
        lambda data: data,
        lambda data: codecs.BOM_UTF8 + data.replace(b"\n", b"\r\n"),
        lambda data: data + b'{"prompt": {"segm',  # killed while it wrote
        lambda data: data + b'{"prompt": {"segments": ["\xc3',
        lambda data: data + b"\n",
    ],
)
def test_own_files_too(rewritten: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    line = json.dumps(to_json(EDIT), ensure_ascii=False) + "\n"
    path.write_bytes(rewritten((line * 2).encode()))
    assert read_lines(path, Edit) == [EDIT, EDIT]


def test_the_collector_rests_inside_and_is_as_it_was_afterwards() -> None:
    import gc

    from errata.core.formats.collector import without_collector

    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled(), "an inner block leaves it to the outer one"
    assert gc.isenabled()
