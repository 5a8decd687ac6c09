"""Reads JSON Lines as other programs write them: the one reader of all such files.

UTF-8, UTF-16 and UTF-32, with or without a byte order mark, lines that end in LF, CR LF or CR,
blank lines, no line break at the end. A file may also hold one JSON array, or objects over several
lines each, as `jq` and PowerShell's ConvertTo-Json print them. U+2028, U+2029 and U+0085 are text,
as JSON has it, and end no line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from errata.core.formats.json_value import checked_json, written_alike

_BREAK = re.compile("\r\n|\r|\n")
_BLANK = " \t\r\n\ufeff"
_FILLED = re.compile(f"[^{_BLANK}]")


class BadLine(ValueError):
    """A line that is no JSON value. `number` counts from 1."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def json_lines(data: bytes, bad: list[BadLine] | None = None) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every value in a file. Raises BadLine, or adds it to `bad`.

    Of an array, the number is that of the item. A key that stands twice in an object, NaN and
    infinite numbers, and halves of surrogate pairs are errors.
    """
    text = _decoded(data)
    lines = [(n, line.strip(_BLANK)) for n, line in enumerate(_BREAK.split(text), 1)]
    lines = [(n, line) for n, line in lines if line]
    if lines and lines[0][1][0] in "[{":
        number, line = lines[0]
        try:
            first = _parsed(line, number)
        except BadLine:
            if whole := _over_lines(text, must=line[0] == "["):
                yield from whole
                return
        else:
            if isinstance(first, list) and len(lines) == 1:
                yield from enumerate(first, 1)
                return
    for number, line in lines:
        try:
            yield number, _parsed(line, number)
        except BadLine as e:
            if bad is None:
                raise
            bad.append(e)


def decoded(data: bytes) -> str:
    """The text of a file in the encoding that it shows. Raises UnicodeDecodeError."""
    return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")


def _decoded(data: bytes) -> str:
    try:
        return decoded(data)
    except UnicodeDecodeError as e:
        number = len(re.findall(rb"\r\n|\r|\n", data[: e.start])) + 1
        raise BadLine(number, f"is not {e.encoding.upper()} ({e.reason})") from None


def _over_lines(text: str, *, must: bool) -> list[tuple[int, Any]]:
    """The items of an array, or the objects of a file that take several lines each.

    None if the first value is not whole or takes one line, unless it `must` be.
    """
    found: list[tuple[int, Any]] = []
    at, number, decoder = 0, 1, json.JSONDecoder()
    while match := _FILLED.search(text, at):
        start = match.start()
        number += len(_BREAK.findall(text, at, start))
        try:
            at = decoder.raw_decode(text, start)[1]
            lines = len(_BREAK.findall(text, start, at))
        except (ValueError, RecursionError):
            at, lines = len(text), 0  # `_parsed` says what is wrong
        if not (found or must or lines):
            return []
        found.append((number, _parsed(text[start:at], number)))
        number += lines
    if len(found) == 1:
        value = found[0][1]
        return list(enumerate(value if isinstance(value, list) else [value], 1))
    return found


def _parsed(text: str, number: int) -> Any:
    if (value := written_alike(text)) is not None:
        return value
    try:
        return checked_json(text, _unique)
    except json.JSONDecodeError as e:
        number += e.lineno - 1
        raise BadLine(number, f"is not valid JSON ({e.msg}, column {e.colno})") from None
    except ValueError as e:
        raise BadLine(number, str(e)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names '{twice[:60]}' twice")
    return row
