"""Figures as SVG: places derived by hand, text escaped, nothing outside the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from errata.core.errors import BadSpec
from errata.core.figure import (
    Bar,
    Bars,
    Dots,
    Figure,
    Findings,
    Level,
    Line,
    Lines,
    Scatter,
    Spread,
    Spreads,
    Table,
    Value,
)
from errata.figures import plots

NS = "{http://www.w3.org/2000/svg}"


def every_kind():
    values = tuple(i / 20 for i in range(21))
    return Figure(
        "all",
        "Title with <angle> & ampersand",
        (
            Scatter("dots", (Dots("a", ((0, 0), (2, 1)), "changes"),), ("note <1>",)),
            Spreads("spread", (Spread("row", values, "stays"),), notes=("n",)),
            Bars(
                "bars", (Bar("one", Value(0.5, 0.4, 0.75), "changes"), Bar("no", None, "soft", 7))
            ),
            Lines(
                "lines",
                (Line("s", ((0, Value(0.0)), (10, Value(1.0, 0.9, 1.0))), "changes"),),
                (Level("flat", Value(0.5, 0.25, 0.75), "stays"),),
                "top",
            ),
        ),
        2,
        "A caption that is long enough to be broken into several lines. " * 6,
    )


def elements(panel, tag, style):
    return [
        e.attributes
        for e in plots.draw(panel).elements
        if e.tag == tag and style in e.attributes["class"].split()
    ]


def test_a_file_is_well_formed_and_stands_alone():
    root = ET.fromstring(plots.svg(every_kind()))
    assert root.attrib["aria-label"] == "Title with <angle> & ampersand"
    texts = [t.text for t in root.iter(f"{NS}text")]
    assert "Title with <angle> & ampersand" in texts and "note <1>" in texts
    style = root.find(f"{NS}style").text
    assert "prefers-color-scheme: dark" in style and "&" not in style
    names = {c for e in root.iter() for c in e.attrib.get("class", "").split()}
    assert all(f".{name}" in style for name in names - {"name", "number"}), "every class is drawn"


def test_nothing_lies_outside_the_page():
    root = ET.fromstring(plots.svg(every_kind()))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for group in root.iter(f"{NS}g"):
        x, y = map(float, group.attrib["transform"][10:-1].split())
        for e in group.iter():
            for key, size, end in (("x", "width", width), ("cx", "r", width)):
                if key in e.attrib:
                    assert 0 <= x + float(e.attrib[key]) + float(e.attrib.get(size, 0)) <= end
            if "y" in e.attrib:
                assert 0 <= y + float(e.attrib["y"]) + float(e.attrib.get("height", 0)) <= height


def test_long_words_are_not_cut():
    row = Bar("a series with a long name, setting=value", Value(0.5), "changes")
    panel = Bars("p", (row,))
    (name,) = elements(panel, "text", "name")
    assert name["text-anchor"] == "end" and name["x"] >= 5 * len(row.label)
    title = "A title that is much longer than its only panel is wide, and wider still"
    assert plots.layout(Figure("f", title, (panel,), 1)).width > 8 * len(title)


def test_bars_are_as_long_as_they_say():
    panel = Bars("p", (Bar("a", Value(0.5, 0.4, 0.75), "changes"),))
    (bar,) = elements(panel, "rect", "changes")
    assert bar["width"] == 0.5 * plots.TRACK
    (whisker,) = elements(panel, "path", "whisker")
    low, high = plots.LABEL + 0.4 * plots.TRACK, plots.LABEL + 0.75 * plots.TRACK
    assert whisker["d"].startswith(f"M{low} ") and f"H{high}" in whisker["d"]
    short = Bars("p", (Bar("a", Value(0.05), "changes"),), high=0.1)
    assert elements(short, "rect", "changes")[0]["width"] == 0.5 * plots.TRACK


def test_lines_run_from_the_bottom_to_the_top():
    panel = Lines("p", (Line("s", ((10, Value(1.0)), (0, Value(0.0))), "changes"),), axis="k")
    dots = elements(panel, "circle", "point")
    bottom, top = plots.HEAD + plots.PLOT_H, plots.HEAD
    assert [d["cy"] for d in dots] == [bottom, top], "in the order of x"
    step = plots.PLOT_W / 2
    assert [d["cx"] for d in dots] == [plots.LEFT + step / 2, plots.LEFT + 1.5 * step]


def test_a_level_is_a_line_with_a_band():
    line = Line("s", ((0, Value(0.0)),), "changes")
    panel = Lines("p", (line,), (Level("l", Value(0.5, 0.25, 0.75), "stays"),))
    (band,) = elements(panel, "rect", "band")
    assert band["y"] == plots.HEAD + 0.25 * plots.PLOT_H
    assert band["height"] == 0.5 * plots.PLOT_H


def test_a_spread_shows_median_and_quartiles():
    values = (0.0, 0.25, 0.5, 0.75, 1.0)
    panel = Spreads("p", (Spread("a", values, "stays"),))
    (median,) = elements(panel, "path", "median")
    assert median["d"].startswith(f"M{plots.LABEL + plots.TRACK / 2} ")
    (box,) = elements(panel, "rect", "quartiles")
    assert (box["x"], box["width"]) == (plots.LABEL + plots.TRACK / 4, plots.TRACK / 2)


def test_equal_values_and_single_points_can_be_drawn():
    assert plots.draw(Spreads("p", (Spread("a", (1.0, 1.0), "soft"),))).elements
    assert plots.draw(Scatter("p", (Dots("a", ((3.0, 3.0),), "soft"),))).elements


def test_a_scatter_has_one_scale_for_both_axes():
    panel = Scatter("p", (Dots("a", ((0, 0), (4, 0), (0, 1)), "changes"),))
    a, b, c = elements(panel, "circle", "dot")
    assert b["cx"] - a["cx"] == pytest.approx(4 * (a["cy"] - c["cy"]), abs=0.05)


def test_files_are_written_beside_each_other(tmp_path):
    table = Table("all", ("name", "value"), [("a, b", 0.5), ("c", None)])
    found = Findings((every_kind(),), (table,), {"n": 3}, ("said",))
    written = plots.write_findings(found, tmp_path / "new", "run", {"seed": 0})
    assert sorted(p.name for p in written) == ["all.csv", "all.svg", "run.json"]
    assert (tmp_path / "new" / "all.csv").read_text() == 'name,value\n"a, b",0.5\nc,\n'
    assert '"said"' in (tmp_path / "new" / "run.json").read_text()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "f").write_text("x")
    for folder in (tmp_path / "f", tmp_path / "f" / "below"):
        with pytest.raises(BadSpec, match="is a file"):
            plots.write_findings(Findings((), ()), folder, "run", {})


def test_lines_have_a_range_of_their_own():
    line = Line("s", ((0, Value(0.0)), (1, Value(2.0))), "changes")
    panel = Lines("p", (line,), high=4.0, percent=False)
    low, middle = elements(panel, "circle", "point")
    assert low["cy"] - middle["cy"] == plots.PLOT_H / 2
    ticks = [e.text for e in plots.draw(panel).elements if e.attributes.get("class") == "tick"]
    assert ticks[:5] == ["0", "1", "2", "3", "4"]


def test_large_numbers_stand_in_figures():
    line = Line("s", ((1, Value(500.0)), (2, Value(1500.0))), "changes")
    panel = Lines("p", (line,), high=2000.0, percent=False)
    ticks = [e.text for e in plots.draw(panel).elements if e.attributes.get("class") == "tick"]
    assert ticks[:5] == ["0", "500", "1,000", "1,500", "2,000"]


def test_a_dashed_line_has_hollow_points_and_a_long_line_none():
    short = tuple((i, Value(0.5)) for i in range(3))
    (line,) = elements(Lines("p", (Line("s", short, "stays", dashed=True),)), "path", "dashed")
    assert "stays" in line["class"]
    panel = Lines("p", (Line("s", short, "stays", dashed=True),))
    assert len(elements(panel, "circle", "hollow")) == 3
    long = tuple((i, Value(0.5)) for i in range(plots.MOST_POINTS + 1))
    assert not elements(Lines("p", (Line("s", long, "stays"),)), "circle", "point")


def test_lines_without_intervals_lie_at_their_x():
    points = ((1, Value(0.2)), (2, Value(0.4)))
    panel = Lines("p", (Line("a", points, "stays"), Line("b", points, "changes")))
    xs = [d["cx"] for d in elements(panel, "circle", "point")]
    assert xs[:2] == xs[2:], "only intervals stand side by side"


def test_labels_of_many_x_are_thinned_out():
    points = tuple((i, Value(0.5)) for i in range(1, 101))
    panel = Lines("p", (Line("s", points, "stays"),))
    ticks = [e.text for e in plots.draw(panel).elements if e.attributes.get("class") == "tick"]
    shown = [t for t in ticks[5:] if t]
    assert shown[0] == "1" and 5 <= len(shown) <= 12


def test_a_panel_inside_a_page_has_a_label_and_no_colours_of_its_own():
    panel = Bars("", (Bar("a", Value(0.5), "changes"),))
    root = ET.fromstring(plots.panel_svg(panel, 'one <b> & "two"'))
    assert root.attrib["aria-label"] == 'one <b> & "two"' and root.find("style") is None
    top = float(root.attrib["viewBox"].split()[1])
    assert all(float(e.attrib["y"]) >= top for e in root.iter() if "y" in e.attrib)
    assert not [e for e in root.iter() if e.attrib.get("class") == "heading"]
    assert ".figure .fill" in plots.style_sheet() and "prefers-color-scheme" not in (
        plots.style_sheet()
    )
