"""`report --vary`: where a run lies, and what is drawn as what."""

from __future__ import annotations

import pytest

from errata.core.errors import BadRun, BadSpec
from errata.core.figure import Bars, Lines
from errata.core.files import read_json
from errata.report.sweeps import sweep


@pytest.fixture
def run(make_run):
    def make(name, editor="tpatcher", passed=None, seed=0, **config):
        return make_run(
            name, editor, cases=6, arguments=passed or {}, config={**config, **(passed or {})},
            seed=seed,
        )  # fmt: skip

    return make


def test_numbers_make_a_line_in_their_order_with_the_default_on_it(run):
    runs = [
        run("k10", passed={"top": 10}, lr=1),
        run("default", top=40, lr=1),
        run("k5", passed={"top": 5}, lr=1),
    ]
    (figure,) = sweep(runs, ["top"]).figures
    assert all(isinstance(p, Lines) for p in figure.panels)
    (line,) = figure.panels[0].lines
    assert sorted(x for x, _ in line.points) == [5, 10, 40]
    scores = read_json(runs[0] / "scores.json")["metrics"]["mean5.exact"]
    value = dict(line.points)[10]
    assert (value.value, [value.low, value.high]) == (scores["value"], scores["ci95"])
    assert figure.panels[0].title == "Mean of 5" and figure.panels[0].notes == ("n = 6",)


def test_two_settings_make_two_series_on_one_axis(run):
    runs = [
        run("k5", passed={"top": 5}, extrinsic="latent", demonstrations=4),
        run("k9", passed={"top": 9}, extrinsic="latent", demonstrations=4),
        run("d8", passed={"demonstrations": 8}, extrinsic="prompt", top=40),
        run("ike", "ike", demonstrations=2),
        run("none", "ft_l", lr=1),
    ]
    (figure,) = sweep(runs, ["top", "demonstrations"]).figures
    panel = figure.panels[0]
    lines = {line.label: [x for x, _ in line.points] for line in panel.lines}
    assert lines == {
        "tpatcher extrinsic=latent": [5, 9],
        "tpatcher extrinsic=prompt": [8],
        "ike": [2],
    }
    assert [level.label for level in panel.levels] == ["ft_l"], "it has neither"


def test_a_word_among_numbers_is_a_level(run):
    runs = [run(f"a{a}", passed={"alpha": a}) for a in (0.1, 0.9, "query")]
    (figure,) = sweep(runs, ["alpha"]).figures
    panel = figure.panels[0]
    assert [x for x, _ in panel.lines[0].points] == [0.1, 0.9]
    assert [level.label for level in panel.levels] == ["tpatcher, alpha=query"]


def test_words_alone_are_bars(run):
    runs = [run(f"z{z}", passed={"zeta": z}) for z in ("off", "random")]
    found = sweep(runs, ["zeta"])
    assert all(isinstance(p, Bars) for p in found.figures[0].panels)
    assert [row.label for row in found.figures[0].panels[0].rows] == ["off", "random"]
    tones = {p.title: p.rows[0].tone for p in found.figures[0].panels}
    assert (tones["Mean of 5"], tones["Reliability"], tones["Near locality"]) == (
        "soft", "changes", "stays",
    )  # fmt: skip


def test_a_switch_is_no_number(run):
    runs = [run(f"i{i}", passed={"intrinsic": i}) for i in (True, False)]
    assert isinstance(sweep(runs, ["intrinsic"]).figures[0].panels[0], Bars)


def test_a_setting_that_is_null_is_no_place(run):
    """T-only and V-only runs share an axis: each has the other's layer switched off."""
    runs = [
        run("t3", passed={"text_layer": 3, "visual_layer": None}),
        run("v3", passed={"text_layer": None, "visual_layer": 3}),
        run("v4", passed={"text_layer": None, "visual_layer": 4}),
    ]
    (figure,) = sweep(runs, ["text_layer", "visual_layer"]).figures
    lines = {line.label: [x for x, _ in line.points] for line in figure.panels[0].lines}
    assert lines == {"tpatcher text_layer": [3], "tpatcher visual_layer": [3, 4]}


def test_the_table_names_the_run(run):
    table = sweep([run("k5", passed={"top": 5})], ["top"]).tables[0]
    rows = [dict(zip(table.columns, r, strict=True)) for r in table.rows]
    (row,) = [r for r in rows if r["kind"] == "reliability"]
    assert (row["run"], row["setting"], row["setting_value"], row["n"]) == ("k5", "top", 5, 6)


def test_other_protocols_have_a_figure_of_their_own(run, make_run):
    other = make_run(
        "seq", "tpatcher", "sequential:3", cases=6, arguments={"top": 5}, config={"top": 5}
    )
    found = sweep([run("k5", passed={"top": 5}), other], ["top"])
    assert [f.name for f in found.figures] == ["vary-top-s0", "vary-top-s1"]


def test_bad_input_is_one_clear_line(run):
    one = run("k5", passed={"top": 5}, lr=1)
    with pytest.raises(BadSpec, match=r"no editor of these runs has a setting 'tip'.*lr, top"):
        sweep([one], ["tip"])
    with pytest.raises(BadRun, match="cannot be told apart"):
        sweep([one, run("again", passed={"top": 5}, lr=1, seed=1)], ["top"])
    with pytest.raises(BadSpec, match="at no single place"):
        sweep([run("both", passed={"top": 5, "lr": 2})], ["top", "lr"])
    many = [run(f"m{i}", passed={"top": 5}, other=i) for i in range(6)]
    with pytest.raises(BadSpec, match="6 series"):
        sweep(many, ["top"])


@pytest.mark.parametrize("asked", ["clip", "max_grad_norm"])
def test_a_renamed_setting_is_varied_under_either_name(run, asked):
    runs = [
        run("old", "ft_l", passed={"clip": 4}, steps=3),
        run("new", "ft_l", passed={"max_grad_norm": 8}, steps=3),
    ]
    found = sweep(runs, [asked])
    (line,) = found.figures[0].panels[0].lines
    assert sorted(x for x, _ in line.points) == [4, 8], "one series: nothing else differs"
    assert found.figures[0].panels[0].axis == "max_grad_norm"


def test_a_setting_that_nothing_has_is_still_refused(run):
    with pytest.raises(BadSpec, match="no editor of these runs has a setting 'maxgrad'"):
        sweep([run("a", "ft_l", max_grad_norm=4)], ["maxgrad"])
