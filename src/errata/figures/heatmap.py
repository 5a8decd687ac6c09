"""A matrix as a heat map with its colour scale, over an image where there is one.

The colour is one tone whose opacity grows with the value, so that it works in light and in dark
mode; with a middle it is one tone on either side of it. Cells that are wide enough show numbers.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence

from errata.core.figure import Heat
from errata.figures.svg import (
    GLYPH,
    HEAD,
    DrawnPanel,
    Element,
    box,
    rounded,
    text,
    title,
    with_notes,
)

CELL_W, CELL_H, WIDEST = 40.0, 22.0, 640.0
"""Size of a cell, and of a whole row of them: more columns make narrower cells."""

PICTURE = 168.0
"""Longer side of a picture."""

SCALE_W, SCALE_H, SHADES = 120.0, 8.0, 24
"""The colour scale, and the number of shades that it shows."""

ROOM = 28.0
"""Cells at least this wide carry their number."""

MINUS = "\N{MINUS SIGN}"

FAINT, OVER_PICTURE, DARK = 0.04, 0.82, 0.78
"""Opacity of the least value, of the largest over a picture, and where numbers turn light."""


def heat(panel: Heat) -> DrawnPanel:
    """The elements of a heat map."""
    rows, columns = len(panel.rows), len(panel.columns)
    assert len(panel.values) == rows and all(len(r) == columns for r in panel.values), panel.title
    scale = _Scale.of(panel)
    width, height = _cell(panel)
    left = max((GLYPH * len(r) + 12 for r in panel.rows if r), default=0.0)
    out = title(panel.title)
    if panel.image is not None:
        style = "picture" if scale is None else "picture grey"
        link = "data:image/png;base64," + base64.b64encode(panel.image).decode()
        place = {"x": left, "y": HEAD, "width": columns * width, "height": rows * height}
        out.append(
            Element("image", {"class": style, **place, "preserveAspectRatio": "none", "href": link})
        )
    for i, (label, values) in enumerate(zip(panel.rows, panel.values, strict=True)):
        y = HEAD + i * height
        if label:
            out.append(text(rounded(left - 8), rounded(y + height / 2 + 4), label, "name", "end"))
        for k, value in enumerate(values):
            if scale is not None and not math.isnan(value):
                place = {"x": left + k * width, "y": y, "width": width, "height": height}
                out += _shown(value, place, scale)
    bottom = HEAD + rows * height
    out.append(box(rounded(left), HEAD, rounded(columns * width), rounded(rows * height), "frame"))
    bottom = _columns(out, panel, left, width, bottom)
    if scale is not None:
        out += scale.key(left, bottom + 12)
        bottom += 12 + SCALE_H + 14
    wide = left + max(columns * width, SCALE_W if scale else 0.0)
    return with_notes(out, panel.notes, wide, bottom + 4, panel.title)


def _cell(panel: Heat) -> tuple[float, float]:
    rows, columns = len(panel.rows), len(panel.columns)
    if panel.image is not None:
        return PICTURE / max(rows, columns), PICTURE / max(rows, columns)
    return min(CELL_W, WIDEST / columns), CELL_H


def _shown(value: float, place: dict[str, float], scale: _Scale) -> Iterator[Element]:
    tone, strength = scale.at(value)
    opacity = scale.opacity(strength)
    kept = {k: rounded(v) for k, v in place.items()}
    yield Element("rect", {"class": f"fill {tone}", **kept, "fill-opacity": opacity})
    if not scale.over and place["width"] >= ROOM:
        style = "inside" if opacity > DARK else "number"
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2 + 4
        yield text(rounded(x), rounded(y), _number(value), style, "middle")


def _columns(out: list[Element], panel: Heat, left: float, width: float, bottom: float) -> float:
    """Adds labels below the columns, as many as fit, and the axis; returns the y below them."""
    longest = max((len(c) for c in panel.columns), default=0)
    every = max(1, math.ceil((GLYPH * longest + 4) / width)) if longest else 0
    for k, label in enumerate(panel.columns):
        if every and k % every == 0:
            x = rounded(left + (k + 0.5) * width)
            out.append(text(x, bottom + 14, label, "tick", "middle"))
    bottom += 16 if every else 0
    if panel.axis:
        x = rounded(left + len(panel.columns) * width / 2)
        out.append(text(x, bottom + 12, panel.axis, "tick", "middle"))
        bottom += 14
    return bottom


def _number(value: float) -> str:
    shown = f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
    return shown.replace("-", MINUS)


class _Scale:
    """From values to a tone and a strength in [0, 1]."""

    def __init__(self, low: float, high: float, middle: float | None, *, over: bool) -> None:
        self.low, self.high, self.middle, self.over = low, high, middle, over
        self.tone = "hot" if over else "changes"

    @classmethod
    def of(cls, panel: Heat) -> _Scale | None:
        """None where every value is blank."""
        known: Sequence[float] = [v for row in panel.values for v in row if not math.isnan(v)]
        if not known:
            return None
        low = panel.low if panel.low is not None else min(known)
        high = panel.high if panel.high is not None else max(known)
        if panel.middle is not None:  # one scale for both sides
            far = max(abs(high - panel.middle), abs(low - panel.middle)) or 1.0
            low, high = panel.middle - far, panel.middle + far
        return cls(low, high, panel.middle, over=panel.image is not None)

    def at(self, value: float) -> tuple[str, float]:
        start = self.low if self.middle is None else self.middle
        share = (value - start) / ((self.high - start) or 1.0)
        tone = "wrong" if self.middle is not None and share < 0 else self.tone
        return tone, min(max(share if self.middle is None else abs(share), 0.0), 1.0)

    def opacity(self, strength: float) -> float:
        return rounded(strength * OVER_PICTURE if self.over else FAINT + (1 - FAINT) * strength)

    def key(self, x: float, y: float) -> Iterator[Element]:
        if self.over:
            yield box(rounded(x), y, SCALE_W, SCALE_H, "pale")
        step = SCALE_W / SHADES
        for k in range(SHADES):
            value = self.low + (self.high - self.low) * (k + 0.5) / SHADES
            tone, strength = self.at(value)
            shape = box(rounded(x + k * step), y, rounded(step), SCALE_H, f"fill {tone}")
            shape.attributes["fill-opacity"] = self.opacity(strength)
            yield shape
        yield box(rounded(x), y, SCALE_W, SCALE_H, "frame")
        ticks = [(0.0, self.low, "start"), (1.0, self.high, "end")]
        if self.middle is not None:
            ticks.append((0.5, self.middle, "middle"))
        for share, value, anchor in ticks:
            place = rounded(x + share * SCALE_W)
            yield text(place, y + SCALE_H + 12, f"{value:.3g}".replace("-", MINUS), "tick", anchor)
