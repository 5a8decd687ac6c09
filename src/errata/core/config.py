"""Reads the settings of a plug-in into its frozen dataclass. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from errata.core.errors import BadSpec


def parse_config(what: str, owner: str, cls: type, given: Mapping[str, Any]) -> Any:
    """The frozen dataclass `cls` from settings in Python or as text.

    what, owner: for messages, as in "editor 'ft_l'". Raises BadSpec on a wrong name or type.
    """
    from pydantic import TypeAdapter, ValidationError

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
        ) from None
