"""What a figure shows, as plain numbers; `errata.figures` draws it. No torch.

A figure holds values, not places on a page. Values carry their interval, and a panel the notes
that a reader needs to judge it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["changes", "stays", "right", "wrong", "soft"]
"""A colour by meaning: should give the new answer, should stay as it was, right, wrong, other.
In a panel of lines the tones only distinguish series."""


def ceiling(top: float) -> float:
    """A round end for an axis: the smallest 1, 2 or 5 times a power of ten that is >= `top`."""
    if top <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(float(f"{m * power:.3g}") for m in (1, 2, 5, 10) if m * power >= top * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Dots:
    """Points (x, y) that share a colour and a legend entry."""

    label: str
    points: tuple[tuple[float, float], ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points in two dimensions without units: the panel has no axes."""

    title: str
    dots: tuple[Dots, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of some values, drawn as a density with median and quartiles."""

    label: str
    values: tuple[float, ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Spreads:
    """Distributions, one row each, on one axis from `low` to `high`."""

    title: str
    rows: tuple[Spread, ...]
    low: float = 0.0
    high: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One fraction. `n`: the number of values that it is a mean of, where rows differ in it."""

    label: str
    value: Value | None
    tone: Tone
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Fractions, one row each, in per cent on an axis from 0 to `high`."""

    title: str
    rows: tuple[Bar, ...]
    high: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """Values over a setting: (x, value) pairs. A dashed line has hollow points."""

    label: str
    points: tuple[tuple[float, Value], ...]
    tone: Tone
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """A value that does not depend on the setting: a horizontal line, its interval as a band."""

    label: str
    value: Value
    tone: Tone


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over a setting, from 0 to `high`; the x values that occur are evenly spaced.

    percent: the values are fractions, shown in per cent.
    """

    title: str
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    axis: str = ""
    notes: tuple[str, ...] = ()
    high: float = 1.0
    percent: bool = True


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix of values as colours; NaN is blank.

    low, high: ends of the colour scale; None: the smallest and the largest value. middle: values
    below it have another colour, on the same scale. image: PNG bytes under the cells, which then
    are square; grey where any cell has a value, so that every colour is a value. axis: what the
    columns are.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    low: float | None = None
    high: float | None = None
    middle: float | None = None
    image: bytes | None = None
    axis: str = ""
    notes: tuple[str, ...] = ()


Panel = Scatter | Spreads | Bars | Lines | Heat


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels in rows of `columns`. `name`: of the file; `caption`: the model, data and method."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    columns: int
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for a CSV file called `name`."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of an analysis. `facts` are nested and JSON-ready, `said` lines of text."""

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
