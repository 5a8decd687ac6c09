"""`report --vary ROWS,COLUMNS`: which run is which cell."""

from __future__ import annotations

import math

import pytest

from errata.core.errors import BadRun, BadSpec
from errata.core.files import read_json
from errata.report.sweeps import grid


@pytest.fixture
def run(make_run):
    def make(name, editor="tpatcher", seed=0, **config):
        return make_run(name, editor, cases=6, arguments={}, config=config, seed=seed)

    return make


def test_numbers_in_order_null_last_and_blank_where_no_run_is(run):
    runs = [
        run("far", text=10, visual=2),
        run("near", text=9, visual=2),
        run("one", text=9, visual=None),
    ]
    found = grid(runs, "text", "visual")
    (figure,) = found.figures
    panel = figure.panels[0]
    assert (panel.title, panel.rows, panel.columns) == ("Mean of 5", ("9", "10"), ("2", "none"))
    assert "Rows: text, columns: visual." in figure.caption
    assert panel.axis == "visual" and panel.notes == ("n = 6",)

    def mean(i):
        return 100 * read_json(runs[i] / "scores.json")["metrics"]["mean5.exact"]["value"]

    assert panel.values[0] == pytest.approx((mean(1), mean(2)))
    assert panel.values[1][0] == pytest.approx(mean(0)) and math.isnan(panel.values[1][1])
    rows = [dict(zip(found.tables[0].columns, r, strict=True)) for r in found.tables[0].rows]
    (row,) = [r for r in rows if (r["kind"], r["run"]) == ("reliability", "one")]
    assert (row["setting"], row["setting_value"], row["n"]) == ("text,visual", "9,none", 6)


def test_other_protocols_have_a_figure_of_their_own(run, make_run):
    other = make_run("seq", "tpatcher", "sequential:3", cases=6, arguments={},
                     config={"a": 1, "b": 1})  # fmt: skip
    found = grid([run("x", a=1, b=1), other], "a", "b")
    assert [f.name for f in found.figures] == ["grid-a-b-s0", "grid-a-b-s1"]


def test_bad_input_is_one_clear_line(run):
    one = run("one", a=1, b=1, lr=1)
    with pytest.raises(BadSpec, match=r"has no setting 'c', so it has no cell.*a, b, lr"):
        grid([one], "a", "c")
    with pytest.raises(BadSpec, match=r"is of tpatcher lr=1 and .* of tpatcher lr=2"):
        grid([one, run("two", a=2, b=1, lr=2)], "a", "b")
    with pytest.raises(BadSpec, match=r"is of tpatcher and .* of lora"):
        grid([run("x", a=1, b=1), run("l", "lora", a=2, b=1)], "a", "b")
    with pytest.raises(BadRun, match="both have a=1 and b=1"):
        grid([one, run("again", a=1, b=1, lr=1, seed=1)], "a", "b")
