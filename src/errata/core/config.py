"""Reads the settings of a plug-in into its frozen dataclass. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from math import isfinite
from typing import Any

from errata.core.errors import BadSpec
from errata.core.types import in_words

SETTING = "setting {where}={there} is not {wanted}"


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
        config: Any = TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as e:
        raise BadSpec(f"{what} '{owner}': {in_words(e, SETTING)}.") from None
    for name in given:
        if any(isinstance(v, float) and not isfinite(v) for v in _flat(getattr(config, name))):
            raise BadSpec(f"{what} '{owner}': setting '{name}' is not a finite number.")
    return config


def _flat(value: Any) -> Iterator[Any]:
    """The value, or all values in it."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _flat(one)
    else:
        yield value
