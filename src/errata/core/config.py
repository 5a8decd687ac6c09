"""Reads the settings of a plug-in into its frozen dataclass. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from json import dumps
from typing import Any, get_args, get_origin, get_type_hints

from errata.core.errors import BadSpec


def current_names(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `cls`, written by this or an older errata, under their present names.

    `cls` and its bases list renamed settings in a class variable
    `renamed: ClassVar[Mapping[str, str]]`, old name -> present name. A name that is a setting of
    `cls` is never replaced. Raises BadSpec if a setting is given under two names.
    """
    today = {f.name for f in fields(cls)}
    renamed: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        renamed.update(vars(base).get("renamed", {}))
    out: dict[str, Any] = {}
    for name, value in settings.items():
        new = name if name in today else renamed.get(name, name)
        if new in out:
            old = next(k for k, v in renamed.items() if v == new and k in settings)
            raise BadSpec(f"setting '{new}' is given twice: '{old}' is its old name. Give one.")
        out[new] = value
    return out


def parse_config(what: str, owner: str, cls: type, given: Mapping[str, Any]) -> Any:
    """The frozen dataclass `cls` from settings in Python or as text.

    what, owner: for messages, as in "editor 'ft_l'". Old names are read as `current_names` does.
    Raises BadSpec on a wrong name or type.
    """
    from pydantic import TypeAdapter, ValidationError

    given = current_names(cls, given)
    known = {f.name for f in fields(cls)}
    for name in given:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise BadSpec(
                f"{what} '{owner}' has no setting '{name}'.{hint} "
                f"It has: {', '.join(sorted(known)) or 'none'}."
            )
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise BadSpec(
            f"{what} '{owner}': setting {where}={first['input']!r}: {first['msg']}."
            f"{_example(what, cls, str(first['loc'][0]))}"
        ) from None


def _example(what: str, cls: type, name: str) -> str:
    """How a setting that is a list is written; "" for other settings."""
    wanted: Any = get_type_hints(cls).get(name)
    kinds = (wanted, *get_args(wanted))
    listed = next((k for k in kinds if get_origin(k) in (tuple, list)), None)
    if listed is None:
        return ""
    default = next(f.default for f in fields(cls) if f.name == name)
    kinds = get_args(listed)
    size = 2 if ... in kinds or len(kinds) == 1 else len(kinds)
    if not isinstance(default, (tuple, list)) or not default:
        one = {int: -1, float: 0.5, bool: True}.get(kinds[0], "NAME")
        default = [one] * (1 if ... in kinds else size)
    value = dumps(list(default)[:size])
    option = "--with" if what == "analysis" else "--set"
    return f" It is a list: {name}={value}, in a shell {option} '{name}={value}'."
