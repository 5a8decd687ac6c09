"""Geometry of the report's charts; the templates draw it as inline SVG.

Coordinates are SVG user units. Values are fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.report.results import Result, Setting
from errata.report.tables import COLUMNS, SHOULD_CHANGE, ScoreCell, cell_of

BAR_KINDS = tuple(k for k in COLUMNS if k not in ("mean5", "mean6", "joint"))

LABEL, TRACK, STEP = 104, 150, 22
"""Bars: width of the labels, width of 100 %, height of a row."""

CURVE_W, CURVE_H, LEFT, TOP = 230, 120, 34, 10
"""Curves: size of the plot area and its offset."""


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    y: int
    width: float
    low: float | None
    high: float | None
    text: str
    interval: str
    changes: bool
    """True for kinds that ask for the new answer, False for those that ask that nothing changed."""


@dataclass(frozen=True, slots=True)
class Bars:
    label: str
    height: int
    bars: tuple[Bar, ...]


def bars(setting: Setting, scorer: str) -> list[Bars]:
    """One panel per method, one bar per kind that any method has."""
    kinds = [
        kind
        for kind in BAR_KINDS
        if any(_cell(r, kind, scorer).value is not None for r in setting.results)
    ]
    return [_panel(r, kinds, scorer) for r in setting.results] if kinds else []


def _cell(result: Result, kind: str, scorer: str) -> ScoreCell:
    return cell_of(result.scores["metrics"], f"{kind}.{scorer}")


def _panel(result: Result, kinds: Sequence[str], scorer: str) -> Bars:
    out = []
    for i, kind in enumerate(kinds):
        cell = _cell(result, kind, scorer)
        out.append(
            Bar(
                label=COLUMNS[kind][0],
                y=i * STEP,
                width=_r(TRACK * (cell.value or 0.0)),
                low=None if cell.low is None else _r(LABEL + TRACK * cell.low),
                high=None if cell.high is None else _r(LABEL + TRACK * cell.high),
                text=cell.text,
                interval=cell.interval,
                changes=kind in SHOULD_CHANGE,
            )
        )
    return Bars(result.label, len(kinds) * STEP + 18, tuple(out))


@dataclass(frozen=True, slots=True)
class Curve:
    """Two lines over the position in the sequence; None where the run has no such scores."""

    label: str
    own: str
    last: str
    own_dots: tuple[tuple[float, float], ...]
    last_dots: tuple[tuple[float, float], ...]
    ticks: tuple[tuple[float, int], ...]
    summary: str


def curves(setting: Setting, kind: str, scorer: str) -> list[Curve]:
    """One panel per method: right after the own edit, and after the last of the sequence."""
    found = [(r, r.scores.get("by_position", {}).get(f"{kind}.{scorer}")) for r in setting.results]
    return [_curve(r.label, points) for r, points in found if points and any(_known(points))]


def _known(points: Mapping[str, Any]) -> list[bool]:
    return [v is not None for v in (*points["own"], *points["last"])]


def _curve(label: str, points: Mapping[str, Any]) -> Curve:
    length = len(points["own"])

    def place(values: Sequence[float | None]) -> tuple[tuple[float, float], ...]:
        width = CURVE_W / max(length - 1, 1)
        return tuple(
            (_r(LEFT + i * width), _r(TOP + CURVE_H * (1 - v)))
            for i, v in enumerate(values)
            if v is not None
        )

    own, last = place(points["own"]), place(points["last"])
    shown = sorted({1, (length + 1) // 2, length})
    ticks = tuple((_r(LEFT + (k - 1) * CURVE_W / max(length - 1, 1)), k) for k in shown)
    parts = [
        f"{name}: " + ", ".join("–" if v is None else f"{100 * v:.0f}" for v in points[key])
        for name, key in (("right after the own edit", "own"), ("after the last edit", "last"))
    ]
    few = length <= 20
    return Curve(
        label,
        _path(own),
        _path(last),
        own if few else (),
        last if few else (),
        ticks,
        "; ".join(parts),
    )


def _path(dots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(dots))


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds per edit of one method, and what else was timed."""

    label: str
    edits: int
    median: float | None
    low: float | None
    high: float | None
    share: float
    phases: tuple[tuple[str, float, int], ...]
    peak_mb: float | None


def times(setting: Setting) -> list[Time]:
    """Median and 10 % to 90 % range of the seconds per edit; empty without timing.json."""
    found = [_time(r) for r in setting.results if r.timing]
    longest = max((t.median or 0.0 for t in found), default=0.0) or 1.0
    return [
        Time(
            t.label,
            t.edits,
            t.median,
            t.low,
            t.high,
            _r((t.median or 0) / longest),
            t.phases,
            t.peak_mb,
        )
        for t in found
    ]


def _time(result: Result) -> Time:
    seconds = sorted(float(s) for s in result.timing.get("edit_seconds") or ())
    phases: Mapping[str, Mapping[str, Any]] = result.timing.get("phases") or {}
    peaks = [float(p["peak_mb"]) for p in phases.values() if p.get("peak_mb") is not None]
    median, low, high = (_quantile(seconds, q) for q in (0.5, 0.1, 0.9))
    return Time(
        result.label,
        len(seconds),
        median,
        low,
        high,
        0.0,
        tuple(
            (n, float(p.get("seconds") or 0), int(p.get("count") or 0)) for n, p in phases.items()
        ),
        max(peaks, default=None),
    )


def _quantile(values: Sequence[float], q: float) -> float | None:
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


def _r(x: float) -> float:
    return round(x, 2)
