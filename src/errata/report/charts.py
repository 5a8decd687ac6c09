"""The report's charts as panels of `core.figure`, and the table of times; `figures` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.core.figure import Bar, Bars, Line, Lines, Panel, Tone, Value
from errata.core.kinds import ProbeKind, ScoreColumn, column_of
from errata.report.results import Result, Setting
from errata.report.tables import ScoreCell, cell_of, columns_of, percent


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel under its label, a score or a method; `summary` has the same numbers as text."""

    label: str
    panel: Panel
    summary: str
    meaning: str = ""


def tone_of(column: ScoreColumn) -> Tone:
    """The colour of a column: by what the answer should do; grey for scores over several kinds."""
    if not isinstance(column, ProbeKind):
        return "soft"
    return "changes" if column.side == "target" else "stays"


def value_of(cell: ScoreCell) -> Value | None:
    return None if cell.value is None else Value(cell.value, cell.low, cell.high)


def bars(setting: Setting, scorer: str) -> list[Chart]:
    """One chart per column of the table, one bar per method, in the same order in every chart."""
    columns = columns_of(setting.results, scorer)
    return [_bars(setting.results, column, scorer) for column in columns]


def _bars(results: Sequence[Result], column: ScoreColumn, scorer: str) -> Chart:
    cells = [(r.label, cell_of(r.metrics, f"{column.name}.{scorer}")) for r in results]
    rows = tuple(Bar(label, value_of(cell), tone_of(column)) for label, cell in cells)
    numbers = ", ".join(f"{label} {cell.text}" for label, cell in cells)
    return Chart(column.heading, Bars("", rows), numbers, column.meaning)


def forgotten(setting: Setting, scorer: str) -> list[ScoreColumn]:
    """The columns under `scorer` whose scores by position some later edit changed."""
    custom = {name: kind for r in setting.results for name, kind in r.custom_kinds.items()}
    keys = {key for r in setting.results for key in r.scores.get("by_position") or {}}
    return [column_of(n, custom) for n in setting.forgotten if f"{n}.{scorer}" in keys]


def curves(setting: Setting, column: ScoreColumn, scorer: str) -> list[Chart]:
    """Scores by position in the sequence: after the case's own edit and after the last edit.

    One chart per method that has any.
    """
    points = [
        (r.label, (r.scores.get("by_position") or {}).get(f"{column.name}.{scorer}"))
        for r in setting.results
    ]
    return [
        _curves(label, values, tone_of(column))
        for label, values in points
        if values and any(v is not None for v in (*values["own"], *values["last"]))
    ]


def _curves(label: str, values: Mapping[str, Any], tone: Tone) -> Chart:
    names = {"own": "right after its own edit", "last": "after the last edit"}
    lines = tuple(
        Line(
            name,
            tuple((i, Value(v)) for i, v in enumerate(values[key], 1) if v is not None),
            tone,
            dashed=key == "last",
        )
        for key, name in names.items()
    )
    numbers = "; ".join(
        f"{name}: {', '.join(percent(v, 0) for v in values[key])}" for key, name in names.items()
    )
    return Chart(label, Lines("", lines, axis="position in the sequence"), numbers)


@dataclass(frozen=True, slots=True)
class EditTimes:
    """Seconds per edit of one method: median, 10 % and 90 % quantile; `phases`: (name, seconds).

    peak_mb: while edits were computed; None where the run recorded only the peak of its process.
    """

    label: str
    edits: int
    median: float | None
    low: float | None
    high: float | None
    phases: tuple[tuple[str, float], ...]
    peak_mb: float | None


def times(setting: Setting) -> list[tuple[EditTimes, float]]:
    """(times, share of the largest median) of every method; empty without timing.json."""
    rows = [_times(r) for r in setting.results if r.timing]
    longest = max((row.median or 0.0 for row in rows), default=0.0) or 1.0
    return [(row, round((row.median or 0.0) / longest, 2)) for row in rows]


def _times(result: Result) -> EditTimes:
    seconds = sorted(float(s) for s in result.timing.get("edit_seconds") or ())
    phases: Mapping[str, Mapping[str, Any]] = result.timing.get("phases") or {}
    own = result.timing.get("peak_of") == "phase"
    median, low, high = (_quantile(seconds, q) for q in (0.5, 0.1, 0.9))
    return EditTimes(
        result.label,
        len(seconds),
        median,
        low,
        high,
        tuple((name, float(p.get("seconds") or 0)) for name, p in phases.items()),
        phases.get("edit", {}).get("peak_mb") if own else None,
    )


def _quantile(values: Sequence[float], q: float) -> float | None:
    """The quantile of sorted values, with linear interpolation."""
    if not values:
        return None
    at = q * (len(values) - 1)
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (at - below) * (values[above] - values[below])


def seconds(value: float | None) -> str:
    """A duration with three significant digits and a unit."""
    if value is None:
        return "–"
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value / 60:.1f} min"
