"""Finished runs over a setting that they vary: a figure per benchmark and protocol, and its CSV.

A run lies at the value of the varied setting that it was passed; where it was passed none of them,
at its own (default) value of the first one that its editor has; an editor that has none of them is
a horizontal line. Runs whose other settings are equal make one series. Numbers make lines, with
words among them (`alpha=query`) as horizontal lines; words alone make bars.

A setting that was passed as null is switched off, so that `text_layer=3, visual_layer=null` lies at
3 of the first. Two settings that are both varied make a grid instead, see `errata.report.grid`.

Intervals are those of each run alone; `errata compare` gives paired differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun, BadSpec
from errata.core.figure import (
    Bar,
    Bars,
    Figure,
    Findings,
    Level,
    Line,
    Lines,
    Panel,
    Table,
    Tone,
    Value,
)
from errata.report.results import Result, Setting, read_settings
from errata.report.tables import COLUMNS, SHOULD_CHANGE, ScoreCell, cell_of

TONES: tuple[Tone, ...] = ("changes", "stays", "right", "wrong", "soft")
#: the mean first, then what it is made of, then the rest
KINDS = ("mean5", *(k for k in COLUMNS if k != "mean5"))


@dataclass(frozen=True)
class SweepRun:
    """One run: its series, and where it lies on it; `name` is empty for an editor without it."""

    result: Result
    series: str
    name: str
    value: Any

    @property
    def number(self) -> float | None:
        plain = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return float(self.value) if plain else None

    @property
    def label(self) -> str:
        return f"{self.series}, {self.name}={self.value}" if self.name else self.series

    def cell(self, kind: str, scorer: str) -> ScoreCell:
        return cell_of(self.result.scores["metrics"], f"{kind}.{scorer}")


def varied(runs: Sequence[Path], names: Sequence[str], scorer: str = "exact") -> Findings:
    """Raises BadSpec for a setting that no run has, BadRun for two runs in one place."""
    settings = read_settings(runs)
    figures: list[Figure] = []
    tables: list[Table] = []
    for setting in settings:
        places = _places(setting, names)
        suffix = f"-{setting.slug}" if len(settings) > 1 else ""
        stem = f"vary-{'-'.join(names)}{suffix}"
        figures.append(_figure(stem, setting, places, names, scorer))
        tables.append(table(stem, places, scorer))
    return Findings(tuple(figures), tuple(tables))


def _places(setting: Setting, names: Sequence[str]) -> list[SweepRun]:
    found = [_place(r, names) for r in setting.results]
    if not any(p.name for p in found):
        has = sorted({k for r in setting.results for k in config_of(r)})
        raise BadSpec(
            f"no editor of these runs has a setting {' or '.join(repr(n) for n in names)}. "
            f"Theirs: {', '.join(has) or 'none'}."
        )
    found = named(found, names)
    at: dict[tuple[str, str, str], SweepRun] = {}
    for p in found:
        key = (p.series, p.name, str(p.value))
        if key in at:
            raise BadRun(
                f"{at[key].result.path} and {p.result.path} are both {p.label}, so they cannot be "
                "told apart in a plot. Give one of them."
            )
        at[key] = p
    return found


def config_of(result: Result) -> Mapping[str, Any]:
    config = result.manifest.get("config")
    return config if isinstance(config, Mapping) else {}


def _place(result: Result, names: Sequence[str]) -> SweepRun:
    config = config_of(result)
    passed = [n for n in names if result.arguments.get(n) is not None]
    if len(passed) > 1:
        raise BadSpec(
            f"{result.path} was passed {' and '.join(passed)}, so it lies at no single place. Vary "
            "one of them at a time."
        )
    own = passed or [n for n in names if n in config]
    if not own:
        return SweepRun(result, "", "", None)
    return SweepRun(result, "", own[0], config.get(own[0], result.arguments.get(own[0])))


def named(places: Sequence[SweepRun], names: Sequence[str]) -> list[SweepRun]:
    """The places with a label per series: the editor, then what tells its series apart."""

    def rest(p: SweepRun) -> dict[str, Any]:
        return {k: v for k, v in config_of(p.result).items() if k not in names}

    out = []
    for p in places:
        others = [rest(q) for q in places if q.result.editor == p.result.editor]
        mine = rest(p)
        tells = [k for k in mine if len({json.dumps(o.get(k)) for o in others}) > 1]
        words = ", ".join(f"{k}={mine[k]}" for k in tells)
        out.append(replace(p, series=f"{p.result.editor} {words}".strip()))
    at: dict[str, set[str]] = {}
    for p in out:
        at.setdefault(p.series, set()).add(p.name)
    return [replace(p, series=f"{p.series} {p.name}") if len(at[p.series]) > 1 else p for p in out]


def _figure(
    stem: str, setting: Setting, places: Sequence[SweepRun], names: Sequence[str], scorer: str
) -> Figure:
    kinds = [k for k in KINDS if any(p.cell(k, scorer).value is not None for p in places)]
    numbers = any(p.number is not None for p in places)
    axis = " / ".join(n for n in names if any(p.name == n for p in places))
    panels = tuple(
        _lines(kind, places, scorer, axis) if numbers else _bars(kind, places, scorer)
        for kind in kinds
    )
    return Figure(
        stem,
        f"{axis}: {', '.join(dict.fromkeys(p.result.editor for p in places))}",
        panels,
        3,
        f"{setting.backbone}, {setting.benchmark}, {setting.protocol}, {scorer}: {setting.cases} "
        f"cases in {setting.units} units. Percentages with 95 % bootstrap intervals of each run "
        "alone; n: scored cases.",
    )


def _value(cell: ScoreCell) -> Value | None:
    return None if cell.value is None else Value(cell.value, cell.low, cell.high)


def _notes(kind: str, places: Sequence[SweepRun], scorer: str) -> tuple[str, ...]:
    counts = sorted({p.cell(kind, scorer).n for p in places} - {0})
    return (f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}",)


def _lines(kind: str, places: Sequence[SweepRun], scorer: str, axis: str) -> Panel:
    """Series by number; runs without one are levels."""
    labels = list(dict.fromkeys(p.series if p.number is not None else p.label for p in places))
    if len(labels) > len(TONES):
        raise BadSpec(
            f"these runs make {len(labels)} series ({'; '.join(labels[:3])}; ...), a plot shows "
            f"{len(TONES)}. Give fewer runs, or vary what tells them apart."
        )
    tone = dict(zip(labels, TONES, strict=False))
    lines: dict[str, list[tuple[float, Value]]] = {}
    levels = []
    for p in places:
        value = _value(p.cell(kind, scorer))
        if value is not None and p.number is not None:
            lines.setdefault(p.series, []).append((p.number, value))
        elif value is not None:
            levels.append(Level(p.label, value, tone[p.label]))
    return Lines(
        COLUMNS[kind][0],
        tuple(Line(name, tuple(pts), tone[name]) for name, pts in lines.items()),
        tuple(levels),
        axis,
        _notes(kind, places, scorer),
    )


def _bars(kind: str, places: Sequence[SweepRun], scorer: str) -> Panel:
    tone: Tone = "changes" if kind in SHOULD_CHANGE else "stays"
    tone = "soft" if kind in ("mean5", "joint") else tone
    several = len({p.series for p in places}) > 1
    rows = tuple(
        Bar(p.label if several or not p.name else f"{p.value}", _value(p.cell(kind, scorer)), tone)
        for p in places
    )
    return Bars(COLUMNS[kind][0], rows, notes=_notes(kind, places, scorer))


def table(stem: str, places: Sequence[SweepRun], scorer: str) -> Table:
    columns = (
        *("series", "editor", "setting", "setting_value", "kind", "scorer"),
        *("value", "low", "high", "n", "units", "unscored", "run"),
    )
    rows = []
    for p in places:
        for kind in KINDS:
            c = p.cell(kind, scorer)
            if c.value is not None:
                rows.append(
                    (
                        *(p.series, p.result.editor, p.name, p.value, kind, scorer),
                        *(c.value, c.low, c.high, c.n, c.units, c.unscored, p.result.path.name),
                    )
                )
    return Table(stem, columns, rows)
