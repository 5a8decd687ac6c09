"""Figures of `errata.core.figure` as SVG, in files or inside a page, and their tables as CSV.

Each panel becomes a list of SVG elements, which the templates print. A file contains its own
colours, for light and for dark mode; inside a page the colours are the page's. Coordinates are SVG
user units.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from errata.core.errors import BadOutput, BadRun, BadSpec
from errata.core.figure import (
    Bar,
    Bars,
    Dots,
    Figure,
    Findings,
    Heat,
    Level,
    Line,
    Lines,
    Panel,
    Scatter,
    Spread,
    Spreads,
    Table,
    Value,
)
from errata.core.files import (
    check_folder,
    finish_folder,
    is_file,
    json_bytes,
    read_json,
    visible,
    write_folder,
)
from errata.core.locks import SHORT, locked
from errata.figures.heatmap import heat
from errata.figures.svg import (
    GLYPH,
    HEAD,
    NOTE,
    DrawnPanel,
    Element,
    box,
    rounded,
    text,
    title,
    with_notes,
)

MARGIN, GAP = 20, 30
"""Edge of the figure, space between panels."""

LABEL, TRACK, STEP, NUMBER, COUNT = 118, 190, 20, 40, 56
"""Rows: width of the labels, of the axis, height of a row, width of the value and of the count."""

SIDE = 210
"""Scatter: side of the square."""

PLOT_W, PLOT_H, LEFT, FOOT = 230, 130, 34, 32
"""Lines: the plot area, and the space for the axes' labels."""

GRID = 60
"""Points at which a density is drawn."""

TITLE = 9.0
"""Mean width of a letter of the figure's title."""

MOST_POINTS = 20
"""Longer lines are drawn without their points."""


@dataclass(frozen=True)
class FigureLayout:
    """A whole figure, laid out for the template."""

    title: str
    width: float
    height: float
    head: tuple[Element, ...]
    panels: tuple[DrawnPanel, ...]


#: what a patch, a run and a state are known by: no analysis is written among them
_OTHERS = {"patch.json": "a patch", "manifest.json": "a run", "state.json": "a state"}


def check_out(folder: Path, name: str) -> None:
    """Raises BadOutput unless findings called `name` can be written, before any work.

    Other files of a folder are kept. What is there under the same name must be of an analysis.
    """
    check_folder(folder)
    if folder.is_dir():
        finish_folder(folder)
    there = visible(folder)
    what = next((what for file, what in _OTHERS.items() if file in there), "")
    if what:
        raise BadOutput(f"{folder} holds {what}. Choose another folder for {name}.")
    same = [n for n in there if n.startswith(name) and Path(n).suffix in (".json", ".csv", ".svg")]
    if same and not _is_analysis(folder / f"{name}.json"):
        raise BadOutput(
            f"{folder / same[0]} is there already and is not of errata. Choose another folder."
        )


def _is_analysis(path: Path) -> bool:
    if not is_file(path):
        return False
    try:
        about = read_json(path)
    except BadRun:
        return False
    return isinstance(about, dict) and ("analysis" in about or "varied" in about)


def write_findings(
    findings: Findings, folder: Path, name: str, about: Mapping[str, Any]
) -> list[Path]:
    """Writes an SVG file per figure, a CSV file per table and `name`.json; returns the paths.

    All of them or none. about: what was analysed; it goes into the JSON file. Raises BadOutput,
    DiskFull, InUse, or BadSpec where `folder` is a file.
    """
    contents = {f"{figure.name}.svg": svg(figure).encode() for figure in findings.figures}
    contents |= {f"{table.name}.csv": as_csv(table).encode() for table in findings.tables}
    shown = [{"name": f.name, "title": f.title, "caption": f.caption} for f in findings.figures]
    listed = {"figures": shown, "tables": [t.name for t in findings.tables]}
    facts = {**about, **listed, "said": list(findings.said), **findings.facts}
    contents[f"{name}.json"] = json_bytes(facts)
    check_folder(folder, BadSpec)
    with locked(folder, wait=SHORT):
        write_folder(folder, contents)
    return [folder / file for file in contents]


def as_csv(table: Table) -> str:
    """Text with a heading; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return out.getvalue()


def svg(figure: Figure) -> str:
    """The figure as the text of an SVG file."""
    env = _templates()
    style = Markup(env.get_template("colours.css.jinja").render() + "\n") + style_sheet()
    return env.get_template("figure.svg.jinja").render(figure=layout(figure), style=style)


def panel_svg(panel: Panel, label: str) -> Markup:
    """A panel as an <svg> element of a page that contains `style_sheet()`.

    label: what a screen reader says. A panel without a title has no space for one.
    """
    top = 0 if panel.title else HEAD - 8
    template = _templates().get_template("panel.svg.jinja")
    return Markup(template.render(panel=draw(panel), label=label, top=top))


def style_sheet() -> Markup:
    """The CSS of every figure; it uses the colours --ink, --paper, --soft, --changes, ..."""
    return Markup(_templates().get_template("figure.css.jinja").render())


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("errata.figures", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def layout(figure: Figure) -> FigureLayout:
    """Panels in rows, below the title, the caption and the legend."""
    drawn = [draw(p) for p in figure.panels]
    grid = [drawn[i : i + figure.columns] for i in range(0, len(drawn), figure.columns)]
    column = max((p.width for p in drawn), default=0.0)
    columns = max((len(row) for row in grid), default=0)
    width = max(columns * (column + GAP) - GAP, TITLE * len(figure.title), 420.0) + 2 * MARGIN
    head, y = _head(figure, width)
    placed = []
    for row in grid:
        placed += [
            DrawnPanel(p.elements, p.width, p.height, MARGIN + k * (column + GAP), y)
            for k, p in enumerate(row)
        ]
        y += max(p.height for p in row) + GAP
    return FigureLayout(
        figure.title, rounded(width), rounded(y - GAP + MARGIN), head, tuple(placed)
    )


def _head(figure: Figure, width: float) -> tuple[tuple[Element, ...], float]:
    """The elements of title, caption and legend, and the y at which the panels begin."""
    out = [text(MARGIN, MARGIN + 14, figure.title, "title")]
    y = MARGIN + 14.0
    letters = int((width - 2 * MARGIN) / (GLYPH * 0.98))
    for line in textwrap.wrap(figure.caption, letters):
        y += NOTE
        out.append(text(MARGIN, y, line, "note"))
    x, begun = float(MARGIN), False
    for shape, tone, label in _legend(figure.panels):
        needed = 22 + GLYPH * len(label) + 18
        if not begun or x + needed > width - MARGIN:
            x, y, begun = float(MARGIN), y + (20 if not begun else NOTE + 2), True
        out += _key(shape, tone, x, y)
        out.append(text(x + 22, y, label, "name"))
        x += needed
    return tuple(out), y + 22


def _legend(panels: Sequence[Panel]) -> list[tuple[str, str, str]]:
    """(shape, tone, label) of everything in the panels, each once."""
    keys: dict[tuple[str, str, str], None] = {}
    for panel in panels:
        marks: tuple[Dots | Line | Level, ...] = ()
        if isinstance(panel, Scatter):
            marks = panel.dots
        elif isinstance(panel, Lines):
            marks = (*panel.lines, *panel.levels)
        elif isinstance(panel, Spreads | Bars):
            words = {"changes": "should give the new answer", "stays": "should stay as it was"}
            tones = {row.tone for row in panel.rows}
            for tone, label in words.items():
                if tone in tones:
                    keys["bar", tone, label] = None
        for mark in marks:
            keys[type(mark).__name__.lower(), mark.tone, mark.label] = None
    return list(keys)


def _key(shape: str, tone: str, x: float, y: float) -> list[Element]:
    if shape == "dots":
        return [Element("circle", {"class": f"dot {tone}", "cx": x + 8, "cy": y - 4, "r": 3.4})]
    if shape == "bar":
        return [box(x, y - 9, 14, 9, f"fill {tone}")]
    line = {"class": f"line {tone}" + (" level" if shape == "level" else "")}
    out = [Element("path", {**line, "d": f"M{x} {y - 4}h16"})]
    if shape == "line":
        out.append(Element("circle", {"class": f"point {tone}", "cx": x + 8, "cy": y - 4, "r": 3}))
    return out


# -- panels -----------------------------------------------------------------------------------


@singledispatch
def draw(panel: object) -> DrawnPanel:
    """The elements of a panel."""
    raise AssertionError(type(panel))


@draw.register
def _scatter(panel: Scatter) -> DrawnPanel:
    out = [*title(panel.title), box(0, HEAD, SIDE, SIDE, "frame")]
    every = np.array([p for d in panel.dots for p in d.points])
    low, high = every.min(0), every.max(0)
    span = float(max(high - low)) or 1.0
    middle = (low + high) / 2
    room = SIDE - 16
    radius = 2.6 if len(every) < 300 else 1.9
    order = [(k, d.tone, p) for d in panel.dots for k, p in enumerate(d.points)]
    for _, tone, (x, y) in sorted(order, key=lambda o: o[0]):  # neither kind covers the other
        place = {
            "cx": rounded(SIDE / 2 + room * (x - middle[0]) / span),
            "cy": rounded(HEAD + SIDE / 2 - room * (y - middle[1]) / span),
        }
        out.append(Element("circle", {"class": f"dot {tone}", **place, "r": radius}))
    return with_notes(out, panel.notes, SIDE, HEAD + SIDE + 4, panel.title)


@draw.register
def _spreads(panel: Spreads) -> DrawnPanel:
    height, label = STEP * len(panel.rows), _label_width(panel.rows)
    out = [*title(panel.title), *_axis(label, panel.low, panel.high, height)]
    for i, row in enumerate(panel.rows):
        y = HEAD + i * STEP
        out.append(text(label - 8, y + 14, row.label, "name", "end"))
        values = np.array(row.values)

        def at(v: float) -> float:
            return label + TRACK * (v - panel.low) / (panel.high - panel.low)

        grid, density = _density(values, panel.low, panel.high)
        top = [
            f"{rounded(at(x))} {rounded(y + 10 - 8 * d)}"
            for x, d in zip(grid, density, strict=True)
        ]
        back = [
            f"{rounded(at(x))} {rounded(y + 10 + 8 * d)}"
            for x, d in zip(grid, density, strict=True)
        ]
        shape = "M" + "L".join([*top, *reversed(back)]) + "Z"
        out.append(Element("path", {"class": f"violin {row.tone}", "d": shape}))
        first, median, third = (at(float(q)) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        out.append(box(rounded(first), y + 7, rounded(max(third - first, 0.8)), 6, "quartiles"))
        out.append(Element("path", {"class": "median", "d": f"M{rounded(median)} {y + 5}v10"}))
        end = label + TRACK + COUNT
        out.append(text(end, y + 14, f"n = {len(values)}", "tick", "end"))
    return with_notes(out, panel.notes, label + TRACK + COUNT, HEAD + height + 20, panel.title)


@draw.register
def _bars(panel: Bars) -> DrawnPanel:
    height, label = STEP * len(panel.rows), _label_width(panel.rows)
    scale = TRACK / panel.high
    out = [*title(panel.title), *_axis(label, 0.0, panel.high, height, percent=True)]
    for i, row in enumerate(panel.rows):
        y = HEAD + i * STEP
        out.append(text(label - 8, y + 14, row.label, "name", "end"))
        end = label + TRACK + NUMBER
        if row.n is not None:
            out.append(text(end + COUNT, y + 14, f"n = {row.n}", "tick", "end"))
        if row.value is None:
            out.append(text(end, y + 14, "–", "number", "end"))
            continue
        out.append(box(label, y + 4, rounded(scale * row.value.value), 12, f"fill {row.tone}"))
        if row.value.low is not None and row.value.high is not None:
            low, high = (rounded(label + scale * v) for v in (row.value.low, row.value.high))
            shape = f"M{low} {y + 10}H{high}M{low} {y + 7}v6M{high} {y + 7}v6"
            out.append(Element("path", {"class": "whisker", "d": shape}))
        out.append(text(end, y + 14, _percent(row.value), "number", "end"))
    counted = COUNT if any(row.n is not None for row in panel.rows) else 0
    width = label + TRACK + NUMBER + counted
    return with_notes(out, panel.notes, width, HEAD + height + 20, panel.title)


@draw.register
def _lines(panel: Lines) -> DrawnPanel:
    ticks = sorted({x for line in panel.lines for x, _ in line.points})
    place = {x: LEFT + PLOT_W * (i + 0.5) / max(len(ticks), 1) for i, x in enumerate(ticks)}

    def at(v: float) -> float:
        return rounded(HEAD + PLOT_H * (1 - v / panel.high))

    out = [*title(panel.title)]
    for v in (panel.high * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)):
        out.append(Element("path", {"class": "grid", "d": f"M{LEFT} {at(v)}h{PLOT_W}"}))
        shown = _tick(100 * v if panel.percent else v)
        out.append(text(LEFT - 6, at(v) + 4, shown, "tick", "end"))
    longest = max((len(f"{x:g}") for x in ticks), default=1)
    every = math.ceil(len(ticks) * (GLYPH * longest + 4) / PLOT_W) or 1
    for x in ticks[::every]:
        out.append(text(rounded(place[x]), HEAD + PLOT_H + 15, f"{x:g}", "tick", "middle"))
    out.append(text(LEFT + PLOT_W / 2, HEAD + PLOT_H + 29, panel.axis, "tick", "middle"))
    for level in panel.levels:
        if level.value.low is not None and level.value.high is not None:
            high, low = at(level.value.high), at(level.value.low)
            out.append(box(LEFT, high, PLOT_W, rounded(low - high), f"band {level.tone}"))
        shape = f"M{LEFT} {at(level.value.value)}h{PLOT_W}"
        out.append(Element("path", {"class": f"line level {level.tone}", "d": shape}))
    for k, line in enumerate(panel.lines):
        spans = any(v.low is not None for _, v in line.points)
        # Intervals of two lines stand side by side.
        aside = 3.0 * (k - (len(panel.lines) - 1) / 2) if spans else 0.0
        out += _series(line, place, aside, at)
    return with_notes(out, panel.notes, LEFT + PLOT_W + 6, HEAD + PLOT_H + FOOT, panel.title)


def _series(line: Line, place: dict[float, float], aside: float, at: Any) -> Iterator[Element]:
    dots = [(rounded(place[x] + aside), v) for x, v in sorted(line.points, key=lambda p: p[0])]
    path = "".join(f"{'L' if i else 'M'}{x} {at(v.value)}" for i, (x, v) in enumerate(dots))
    style = f"line dashed {line.tone}" if line.dashed else f"line {line.tone}"
    yield Element("path", {"class": style, "d": path})
    if len(dots) > MOST_POINTS:
        return
    point = f"point hollow {line.tone}" if line.dashed else f"point {line.tone}"
    for x, v in dots:
        if v.low is not None and v.high is not None:
            shape = (
                f"M{x} {at(v.low)}V{at(v.high)}M{x - 2.5} {at(v.low)}h5M{x - 2.5} {at(v.high)}h5"
            )
            yield Element("path", {"class": f"line thin {line.tone}", "d": shape})
        yield Element("circle", {"class": point, "cx": x, "cy": at(v.value), "r": 3})


@draw.register
def _heat(panel: Heat) -> DrawnPanel:
    return heat(panel)


def _label_width(rows: Sequence[Spread | Bar]) -> float:
    return max(LABEL, *(rounded(GLYPH * len(row.label) + 12) for row in rows)) if rows else LABEL


def _axis(
    left: float, low: float, high: float, height: float, *, percent: bool = False
) -> Iterator[Element]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + TRACK * share
        value = low + share * (high - low)
        yield Element("path", {"class": "grid", "d": f"M{x} {HEAD}v{height}"})
        shown = _tick(100 * value) if percent else f"{value:g}"
        yield text(x, HEAD + height + 14, shown, "tick", "middle")


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _density(values: np.ndarray[Any, Any], low: float, high: float) -> tuple[Any, Any]:
    """(positions, heights up to 1) of a kernel density over the range of the values."""
    width = 0.02 * (high - low)
    ends = max(low, float(values.min()) - 2 * width), min(high, float(values.max()) + 2 * width)
    grid = np.linspace(*ends, GRID)
    density = np.exp(-0.5 * ((grid[:, None] - values[None]) / width) ** 2).sum(1)
    return grid, density / density.max()


def _percent(value: Value) -> str:
    return f"{100 * value.value:.1f}"
