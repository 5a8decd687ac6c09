"""What a figure shows, as plain numbers; `errata.figures.plots` draws it. No torch.

An analysis says what is to be seen, not where it goes on a page. Values carry their own interval,
and a panel its notes: the numbers that a reader must see before believing the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["changes", "stays", "right", "wrong", "soft"]
"""A colour by meaning: asks for the new answer, must stay as it was, true, false, everything else.
In a panel of lines they only tell series apart."""


def ceiling(top: float) -> float:
    """A round end for an axis: the least of 1, 2, 5 times a power of ten that is not below."""
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
    """Points (x, y) of one kind."""

    label: str
    points: tuple[tuple[float, float], ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Scatter:
    """Two dimensions of some space: they have no unit, so the panel has no axes."""

    title: str
    dots: tuple[Dots, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of some values: drawn as a density, with median and quartiles."""

    label: str
    values: tuple[float, ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Spreads:
    """Distributions below each other on one axis from `low` to `high`."""

    title: str
    rows: tuple[Spread, ...]
    low: float = 0.0
    high: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """`n`: what the value is a mean of, where rows differ in it."""

    label: str
    value: Value | None
    tone: Tone
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """Fractions below each other, in per cent on an axis from 0 to `high`."""

    title: str
    rows: tuple[Bar, ...]
    high: float = 1.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """Values over some setting: x -> value."""

    label: str
    points: tuple[tuple[float, Value], ...]
    tone: Tone


@dataclass(frozen=True, slots=True)
class Level:
    """A fraction that depends on no setting: a horizontal line with a band."""

    label: str
    value: Value
    tone: Tone


@dataclass(frozen=True, slots=True)
class Lines:
    """Values over a setting, from 0 to `high`; the values of x that occur are evenly spaced.

    percent: they are fractions, shown in per cent.
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

    low, high: ends of the colour scale, the least and the largest value where None. middle: values
    below it have another colour, and both sides have one scale. image: PNG bytes under the cells,
    which then make up a square or, where there are more columns than rows, an oblong picture;
    shown grey where any cell has a value, so that colour is heat. axis: what the columns are.
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
    """Panels in rows of `columns`. `name` is the file's; `caption` says what was done on what."""

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
    """What was found. `facts` are nested and JSON-ready; `said` are lines for a terminal."""

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
