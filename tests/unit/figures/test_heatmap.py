"""Heat maps: places, shades and numbers derived by hand, and pictures under them."""

from __future__ import annotations

import base64
import io
import math
import xml.etree.ElementTree as ET

import pytest
from PIL import Image as Pillow

from errata.core.figure import Figure, Heat
from errata.figures import heatmap, plots
from errata.figures.svg import HEAD

NAN = math.nan


def png() -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (4, 4), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def cells(panel):
    """The rectangles of the matrix, without those of the colour scale."""
    drawn = plots.draw(panel).elements
    fills = [e.attributes for e in drawn if e.tag == "rect" and "fill-opacity" in e.attributes]
    return fills[: -heatmap.SHADES] if fills else []


def texts(panel, style):
    return [
        e.text for e in plots.draw(panel).elements
        if e.tag == "text" and e.attributes["class"] == style
    ]  # fmt: skip


def test_shades_grow_with_the_value_and_blank_is_blank():
    panel = Heat("p", ("a", "b"), ("x", "y"), ((0.0, 1.0), (0.5, NAN)))
    found = cells(panel)
    assert len(found) == 3, "NaN has no cell"
    shades = [c["fill-opacity"] for c in found]
    least = heatmap.FAINT
    assert shades == [least, 1.0, pytest.approx(least + (1 - least) / 2, abs=0.006)]
    places = [(c["x"] - found[0]["x"], c["y"] - HEAD) for c in found]
    assert places == [(0, 0), (heatmap.CELL_W, 0), (0, heatmap.CELL_H)]
    assert texts(panel, "inside") == ["1.00"] and texts(panel, "number") == ["0.00", "0.50"]


def test_the_scale_is_the_panels_own_or_the_one_that_was_given():
    values = ((2.0, 4.0),)
    assert texts(Heat("p", ("",), ("x", "y"), values), "tick") == ["x", "y", "2", "4"]
    given = Heat("p", ("",), ("x", "y"), values, low=0.0, high=8.0)
    assert texts(given, "tick")[-2:] == ["0", "8"]
    shades = [c["fill-opacity"] for c in cells(given)]
    share = 1 - heatmap.FAINT
    assert shades == pytest.approx(
        [heatmap.FAINT + share / 4, heatmap.FAINT + share / 2], abs=0.006
    )
    beyond = Heat("p", ("",), ("x", "y"), ((-1.0, 9.0),), low=0.0, high=8.0)
    assert [c["fill-opacity"] for c in cells(beyond)] == [heatmap.FAINT, 1.0]


def test_two_tones_around_a_middle_have_one_scale():
    panel = Heat("p", ("",), ("a", "b", "c"), ((0.4, 0.5, 0.9),), middle=0.5)
    tones = [c["class"] for c in cells(panel)]
    assert tones == ["fill wrong", "fill changes", "fill changes"]
    shades = [c["fill-opacity"] for c in cells(panel)]
    assert shades[2] == 1.0 and shades[1] == heatmap.FAINT
    assert shades[0] == pytest.approx(heatmap.FAINT + (1 - heatmap.FAINT) / 4, abs=0.006)
    assert texts(panel, "tick")[-3:] == ["0.1", "0.9", "0.5"], "0.5 is as far from 0.1 as from 0.9"


def test_equal_values_and_no_values_can_be_drawn():
    assert cells(Heat("p", ("",), ("x",), ((3.0,),)))[0]["fill-opacity"] == heatmap.FAINT
    blank = Heat("p", ("",), ("x",), ((NAN,),))
    assert not [e for e in plots.draw(blank).elements if "fill-opacity" in e.attributes]


def test_a_picture_lies_exactly_under_its_cells():
    values = ((0.0, 1.0, 0.5), (0.1, 0.2, NAN))
    panel = Heat("p", ("", ""), ("", "", ""), values, image=png())
    (picture,) = [e.attributes for e in plots.draw(panel).elements if e.tag == "image"]
    side = heatmap.PICTURE / 3
    assert (picture["width"], picture["height"]) == (3 * side, 2 * side)
    found = cells(panel)
    assert max(c["x"] + c["width"] for c in found) == pytest.approx(picture["x"] + 3 * side)
    assert max(c["y"] + c["height"] for c in found) == pytest.approx(HEAD + 2 * side)
    assert max(c["fill-opacity"] for c in found) == heatmap.OVER_PICTURE, (
        "what matters stays in sight"
    )
    assert not texts(panel, "number") and "grey" in picture["class"]
    assert base64.b64decode(picture["href"].split(",")[1]) == png()
    blank = Heat("p", ("",), ("",), ((NAN,),), image=png())
    (picture,) = [e.attributes for e in plots.draw(blank).elements if e.tag == "image"]
    assert picture["class"] == "picture", "without values it is the picture itself"


def test_many_columns_get_narrower_and_lose_numbers_and_some_labels():
    names = tuple(str(i) for i in range(64))
    panel = Heat("p", ("row",), names, (tuple(float(i) for i in range(64)),), axis="block")
    assert plots.draw(panel).width <= heatmap.WIDEST + 60
    assert not texts(panel, "number") and "block" in texts(panel, "tick")
    shown = [t for t in texts(panel, "tick") if t in names]
    assert shown[:2] == ["0", "2"], "two digits do not fit under every cell"


def test_a_file_with_a_heat_map_is_well_formed_and_every_class_is_drawn():
    panels = (
        Heat("m", ("a long row <1>",), ("x",), ((1.0,),), middle=0.0, axis="block", notes=("n",)),
        Heat("i", ("",), ("",), ((0.5,),), image=png()),
    )
    root = ET.fromstring(plots.svg(Figure("f", "t", panels, 2)))
    namespace = "{http://www.w3.org/2000/svg}"
    style = root.find(f"{namespace}style").text
    names = {c for e in root.iter() for c in e.attrib.get("class", "").split()}
    assert all(f".{name}" in style for name in names - {"name", "number"})
    width = float(root.attrib["width"])
    for group in root.iter(f"{namespace}g"):
        x = float(group.attrib["transform"][10:-1].split()[0])
        for e in group.iter():
            if "x" in e.attrib:
                assert 0 <= x + float(e.attrib["x"]) + float(e.attrib.get("width", 0)) <= width
    assert len(list(root.iter(f"{namespace}image"))) == 1
