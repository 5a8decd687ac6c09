"""What is wrong with a value that a file or a caller gave, in one line of our words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.errors import BadSpec, one_line
from errata.core.types import brief

if TYPE_CHECKING:
    from pydantic import ValidationError


def why(error: ValueError) -> str:
    """What was wrong with a value from a file, in one line of our words."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return in_words(error)
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return one_line(error)


_WANTED = (
    (("string",), "a text"),
    (("int", "greater", "less"), "a whole number"),
    (("float", "decimal", "finite"), "a number"),
    (("bool",), "true or false"),
    (("dict", "mapping", "model", "dataclass", "is_instance"), "an object"),
    (("tuple", "list", "set", "iterable", "too_"), "a list of the right length"),
)


def in_words(error: ValidationError, what: str = "'{where}' is {there}, not {wanted}") -> str:
    """The first thing that is wrong, in one line: where, what is there, what belongs there."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:80]
    kind = str(first["type"])
    if kind == "missing":
        return f"'{where}' is missing"
    if kind in ("value_error", "assertion_error"):  # one of our own checks
        said = str((first.get("ctx") or {}).get("error") or first["msg"])
        return f"'{where}': {said}" if where else said
    if kind == "literal_error":
        wanted = str((first.get("ctx") or {}).get("expected"))
    else:
        wanted = next((w for names, w in _WANTED if kind.startswith(names)), first["msg"].lower())
    return what.format(where=where or "it", there=_there(first), wanted=wanted)


def _there(error: Mapping[str, Any]) -> str:
    text = repr(error["input"])
    return text if len(text) <= 40 else f"{text[:40]}..."


def path_of(value: Any, what: str) -> Path:
    """A path from a text or a path. Raises BadSpec."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise BadSpec(f"{what} is given as {brief(value)}. Give a path.")
    return Path(os.fsdecode(value))


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """Raises BadSpec for anything but a whole number that is large enough."""
    small = isinstance(value, int) and least is not None and value < least
    if isinstance(value, bool) or not isinstance(value, int) or small:
        bound = "" if least is None else f" of at least {least}"
        raise BadSpec(f"{name}={value!r} is no whole number{bound}.")
    return value
