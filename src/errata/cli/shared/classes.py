"""The classes of transformers that errata was tried on: made anew, or as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from errata.cli.shared.options import quiet
from errata.cli.shared.printing import print_json, say
from errata.core import registry
from errata.core.errors import UnknownName


def stored() -> dict[str, Any]:
    """`versions` they were made with, and `classes`: the rows of `errata.testing.class_table`."""
    path = files("errata") / "assets" / "classes.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def show_classes(editors: str | None, only: str | None, *, as_json: bool) -> None:
    """Tries the classes now and prints a line each, or all of them as JSON."""
    quiet()
    chosen = _named("editor", editors, registry.names("editors"))
    from errata.testing import class_table, zoo
    from errata.testing.zoo.not_tried import not_tried

    names = list(zoo.ZOO)
    if only is not None:
        by_name = {**{m.cls: n for n, m in zoo.ZOO.items()}, **{n: n for n in zoo.ZOO}}
        names = [by_name[n] for n in _named("class", only, list(by_name)) or ()]
    rows = []
    for row in class_table.examined(names, chosen):
        rows.append(row)
        if not as_json:
            for line in lines(row):
                say(line)
    others = not_tried(m.cls for m in zoo.ZOO.values()) if only is None else []
    if as_json:
        print_json({"classes": rows, "not_tried": [asdict(o) for o in others]})
        return
    say(summary(rows))
    for why in dict.fromkeys(o.why for o in others):
        say(f"not tried ({why}): {', '.join(o.cls for o in others if o.why == why)}")


def lines(row: Mapping[str, Any]) -> list[str]:
    """A class in one line, and one line per editor that refuses it."""
    head = f"{row['status']:<8} {row['class']}"
    out = [f"{head}: {row['reason']}" if row["reason"] else head]
    by_reason: dict[str, list[str]] = {}
    for editor, why in row["editors"].items():
        if why:
            by_reason.setdefault(why, []).append(editor)
    out += [f"         not {', '.join(names)}: {why}" for why, names in by_reason.items()]
    return out


def summary(rows: Iterable[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return f"{sum(counts.values())} classes: " + ", ".join(f"{n} {s}" for s, n in counts.items())


def _named(kind: str, given: str | None, known: Sequence[str]) -> list[str] | None:
    if given is None:
        return None
    names = [n.strip() for n in given.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise UnknownName(kind, name, known)
    return names
