"""Files as errata wrote them, read from bytes straight into values: faster, in less memory.

Whatever does not look like errata's own file gives None here. Then the readers of all files read
it, and say what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from errata.core.formats.json_value import DEEPEST, HUGE, parse_json, written_alike
from errata.core.types import adapter

T = TypeVar("T")

_HUGE = re.compile(HUGE.pattern.encode())
#: the names of a line of JSON, and where its objects begin and end
_SHAPE = re.compile(rb'"[^"\\]*": |[{}]')
_shapes: set[bytes] = set()


def own_lines(cls: type[T], data: bytes) -> list[T] | None:
    """The values of JSON lines, each a `cls`."""
    if any(odd in data for odd in (b"NaN", b"Infinity", b"\r")) or _HUGE.search(data) is not None:
        return None
    values: list[T] = []
    for line in data.splitlines():
        flat = line.count(b"[") + line.count(b"{") < DEEPEST
        value = _own(cls, line) if flat and _has_known_shape(line) else None
        if value is None:
            return None
        values.append(value)
    return values


def own_object(cls: type[T], data: bytes, name: str) -> dict[str, Any] | None:
    """A JSON object in which the items of the list `name` are values already, each a `cls`.

    data: the object, one space of indentation a level. cls: without fields for any value and for
    numbers that are not whole. The items are read one by one: their plain JSON never is in memory
    as a whole.
    """
    begin = data.find(f'\n "{name}": [\n  {{\n'.encode())
    end = data.find(b"\n  }\n ]", begin)
    if begin < 0 or end < 0:
        return None
    opening = data.index(b"[", begin)
    values: list[T] = []
    for item in _split(data, opening + len("[\n  {\n"), end):
        value = _own(cls, b"{" + item + b"}")
        if value is None:
            return None
        values.append(value)
    try:
        rest = parse_json((data[: opening + 1] + data[end + len("\n  }\n ") :]).decode())
    except ValueError:
        return None
    return {**rest, name: tuple(values)}


def _split(data: bytes, at: int, end: int) -> Iterator[bytes]:
    between = b"\n  },\n  {\n"
    while (until := data.find(between, at, end)) >= 0:
        yield data[at:until]
        at = until + len(between)
    yield data[at:end]


def _own(cls: type[T], data: bytes) -> T | None:
    shape: Any = cls
    try:
        value: T = adapter(shape).validate_json(data)
    except ValueError:
        return None
    return value


def _has_known_shape(line: bytes) -> bool:
    """Whether no name stands twice in an object, known from a line with the same names."""
    shape = b"".join(_SHAPE.findall(line))
    if shape not in _shapes:
        try:
            alike = written_alike(line.decode()) is not None
        except UnicodeDecodeError:
            return False
        if not alike:
            return False
        if len(_shapes) < 1000:
            _shapes.add(shape)
    return True
