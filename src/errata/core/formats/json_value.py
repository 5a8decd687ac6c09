"""JSON that errata can work with: what only Python's own reader lets through is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

#: Deepest nesting of a value. errata's own files have at most 12 levels.
DEEPEST = 100

#: a number that may be infinite
HUGE = re.compile(r"\d[eE]\+?\d{3}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse_json(text: str) -> Any:
    """The value of a text. Raises ValueError, in a few words.

    Refused: NaN and infinite numbers, nesting deeper than DEEPEST, halves of surrogate pairs.
    """
    try:
        return checked_json(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{e.msg.lower()} at line {e.lineno}, column {e.colno}") from None


def checked_json(text: str, pairs: Pairs | None = None) -> Any:
    """As `parse_json`, but JSONDecodeError for what is no JSON.

    pairs: makes an object from its names and values.
    """
    parse_float = _finite if HUGE.search(text) is not None else None
    try:
        value = json.loads(
            text, parse_constant=_finite, parse_float=parse_float, object_pairs_hook=pairs
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as e:
        if "integer string conversion" in str(e):  # Python's limit of digits
            raise ValueError("a number has too many digits") from None
        raise
    if text.count("[") + text.count("{") >= DEEPEST:
        _check_depth(value)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a surrogate pair, which is no text") from None
    return value


def written_alike(text: str) -> Any:
    """The value of a text that is as errata writes it, which needs no further check; else None.

    Writing it again costs less than looking at every pair of names and values.
    """
    if text.count("[") + text.count("{") >= DEEPEST:
        return None
    try:
        value = json.loads(text)
        again = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        again.encode()
    except (ValueError, RecursionError):
        return None
    return value if again == text else None


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")) or number != number:
        raise ValueError(f"the number {text[:20]} is not finite")
    return number


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]


def without_unused(schema: Any, *names: str) -> Any:
    """The schema of a class whose JSON leaves these fields out where they hold nothing.

    So plans and answers of runs that do not use them keep their bytes.
    """
    from pydantic_core import core_schema

    def write(value: Any, to_dict: Any) -> Any:
        data = to_dict(value)
        for name in names:
            if data[name] in (None, "", ()) or data[name] == []:
                del data[name]
        return data

    schema["serialization"] = core_schema.wrap_serializer_function_ser_schema(write)
    return schema
