"""Reads the settings of a plug-in into its frozen dataclass. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from json import dumps
from math import isfinite
from typing import Any, get_args, get_origin, get_type_hints

from errata.core.errors import BadSpec
from errata.core.formats.validation import in_words

#: the largest whole number that a setting may have: sizes of tensors are computed with them
MOST = 2**31 - 1
SETTING = "setting {where}={there} is not {wanted}"


def current_names(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `cls`, written by this or an older errata, under their present names.

    `cls` and its bases list renamed settings in a class variable
    `renamed: ClassVar[Mapping[str, str]]`, old name -> present name, and renamed values in
    `renamed_values: ClassVar[Mapping[str, Mapping[str, str]]]`, setting -> old -> present value. A
    name that is a setting of `cls` is never replaced. Raises BadSpec if a setting is given under
    two names.
    """
    today = {f.name for f in fields(cls)}
    renamed: dict[str, str] = _inherited(cls, "renamed")
    values: dict[str, Mapping[str, str]] = _inherited(cls, "renamed_values")
    out: dict[str, Any] = {}
    for name, value in settings.items():
        new = name if name in today else renamed.get(name, name)
        if new in out:
            old = next(k for k, v in renamed.items() if v == new and k in settings)
            raise BadSpec(f"setting '{new}' is given twice: '{old}' is its old name. Give one.")
        known = values.get(new, {})
        out[new] = known.get(value, value) if isinstance(value, str) else value
    return out


def meanings(cls: type) -> dict[str, str]:
    """What each setting of `cls` means, as the docstrings of the class and of its bases say.

    A docstring has sentences such as `lr: step size of Adam.` or `low, high: ends of the scale.` A
    subclass that describes a setting of its base replaces the description. Settings that no
    docstring describes are left out.
    """
    names = sorted((f.name for f in fields(cls)), key=len, reverse=True)
    if not names:
        return {}
    one = "|".join(map(re.escape, names))
    heads = re.compile(rf"(?:^|(?<=[.;]) )((?:{one})(?:, (?:{one}))*): ")
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = " ".join((vars(base).get("__doc__") or "").split())
        found = list(heads.finditer(doc)) if is_dataclass(base) else []
        ends = [*(m.start() for m in found[1:]), len(doc)]
        for head, end in zip(found, ends, strict=False):
            text = doc[head.end() : end].strip().removesuffix(";")
            out.update(dict.fromkeys(head[1].split(", "), text))
    return out


def saved_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `current_names`, for settings in a saved file.

    Without those that `cls` or its bases list in `retired: ClassVar[tuple[str, ...]]`: settings
    that had no effect, and which nobody can set any more.
    """
    retired = {name for base in cls.__mro__ for name in vars(base).get("retired", ())}
    return {k: v for k, v in current_names(cls, settings).items() if k not in retired}


def made_with(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `saved_settings`, for the settings that a state was made with.

    A setting in `since: ClassVar[tuple[str, ...]]` is newer than states that do not name it: they
    were made as its default says.
    """
    saved = saved_settings(cls, settings)
    newer = {name for base in cls.__mro__ for name in vars(base).get("since", ())} - saved.keys()
    if not saved or not newer:
        return saved
    defaults = {f.name: f.default for f in fields(cls) if f.name in newer}
    return saved | {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}


def _inherited(cls: type, name: str) -> dict[str, Any]:
    """The entries of a class variable of `cls` and its bases."""
    entries: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        entries.update(vars(base).get(name, {}))
    return entries


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
        name = str(e.errors()[0]["loc"][0])
        raise BadSpec(
            f"{what} '{owner}': {in_words(e, SETTING)}.{_example(what, cls, name)}"
        ) from None
    for name in given:
        if any(isinstance(v, float) and not isfinite(v) for v in _flat(getattr(config, name))):
            raise BadSpec(f"{what} '{owner}': setting '{name}' is not a finite number.")
        if any(isinstance(v, int) and abs(v) > MOST for v in _flat(getattr(config, name))):
            raise BadSpec(f"{what} '{owner}': setting '{name}' is beyond {MOST:,}. Give less.")
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
