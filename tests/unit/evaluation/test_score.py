"""score_run on one small run; every number is derived by hand.

sequential:2, two lanes: l0 = a, b and l1 = c, d. Origins: a, c counterfactual; b, d correction.
The target is "new", the gold answer of near probes is "gold". After the last edit:

    case  rel (said)         near1: n1a n1b   near2: n2 (a and c only)
    a     new                same changed     same
    b     old                same same        -
    c     New.               changed changed  changed
    d     new, not stopped   same same        -

    reliability.exact     1 0 1 0 -> 1/2; lanes 1/2, 1/2 -> any resample is 1/2
    near1.exact           1/2 1 0 1 -> 5/8; lanes 3/4, 1/2. Two lanes resample to (l0, l0), both, or
                          (l1, l1) with 1/4, 1/2, 1/4 -> interval [1/2, 3/4]
    near2.exact           1 - 0 - -> 1/2; lanes 1, 0 -> [0, 1]
    near_locality.exact   mean of the groups (5/8 + 1/2) / 2 = 9/16; (l0, l0): (3/4 + 1) / 2 = 7/8,
                          (l1, l1): (1/2 + 0) / 2 = 1/4 -> [1/4, 7/8]
    retention.exact       l0 kept 1 of 2, l1 kept 2 of 2 -> 3/4, n = 2 lanes
    base                  reliability: only b said "new" before -> 1/4; near1: the first model says
                          "gold" to everything -> 1
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.core.errors import BadRun, UnknownName
from errata.core.files import append_lines, write_json
from errata.core.types import Answer
from errata.evaluation.score import score_run
from errata.evaluation.statistics.intervals import student

MakeRun = Callable[..., Path]


def test_values_by_hand(tmp_path: Path, make_run: MakeRun) -> None:
    scores = score_run(make_run(tmp_path))
    assert (scores["schema"], scores["cases"], scores["units"]) == (1, 4, 2)
    m = scores["metrics"]

    def entry(key: str) -> tuple[Any, ...]:
        return tuple(m[key][k] for k in ("value", "n", "units", "unscored", "ci95", "base"))

    def t(value: float, error: float) -> list[float]:
        """Two lanes with this mean, which differ by twice the error."""
        return list(student(value, error, 1, (0.0, 1.0)) or ())

    # two lanes that agree: 0.025 = (1 - p)^2 is the share of lanes that may differ
    least = 0.025**0.5
    half, full = (0.5 * least, 1 - 0.5 * least), (least, 1.0)
    assert entry("reliability.exact") == (0.5, 4, 2, 0, [round(x, 6) for x in half], 0.25)
    assert entry("near_locality/near1.exact") == (0.625, 4, 2, 0, t(0.625, 0.125), 1.0)
    assert entry("near_locality/near2.exact") == (0.5, 2, 2, 0, t(0.5, 0.5), 1.0)
    assert entry("near_locality.exact") == (0.5625, 4, 2, 0, t(0.5625, 0.3125), 1.0)
    assert entry("retention.exact") == (0.75, 2, 2, 0, t(0.75, 0.25), 1.0)
    assert entry("reliability.exact@own") == (1.0, 4, 2, 0, [round(x, 6) for x in full], 0.25)
    # no answer was teacher-forced: everything is unscored, nothing is zero
    assert entry("reliability.token") == (None, 0, 0, 4, None, None)
    # no generality probe: joint cannot be judged
    assert entry("joint.exact") == (None, 0, 0, 4, None, None)
    assert "mean5.exact" not in m and "reliability/.exact" not in m
    assert scores["capped"] == {"reliability": 1}


def test_positions_and_origins(tmp_path: Path, make_run: MakeRun) -> None:
    scores = score_run(make_run(tmp_path))
    # first in their lanes: a, c (right, right); second: b, d (wrong, wrong)
    assert scores["by_position"]["reliability.exact"] == {
        "own": [1.0, 1.0],
        "last": [1.0, 0.0],
        "n": [2, 2],
    }
    by_origin = scores["by_origin"]
    assert by_origin["counterfactual"]["reliability.exact"]["value"] == 1.0  # a, c
    assert by_origin["correction"]["reliability.exact"]["value"] == 0.0  # b, d
    assert by_origin["correction"]["reliability.exact"]["base"] == 0.5
    assert "retention.exact" not in by_origin["correction"]


def test_same_bytes(tmp_path: Path, make_run: MakeRun) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    for run in (one, two, one):
        score_run(run)
    assert (one / "scores.json").read_bytes() == (two / "scores.json").read_bytes()
    assert json.loads((one / "scores.json").read_text()) == score_run(one)


def test_more_metrics_on_request(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    assert score_run(run, ["legacy"])["metrics"]["reliability.legacy"]["unscored"] == 4
    with pytest.raises(UnknownName, match=r"exakt.*exact"):
        score_run(run, ["exakt"])


def test_incomplete(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(BadRun, match=r"it lacks 1 answer,.*panel/l1/p1"):
        score_run(make_run(tmp_path, drop=1))


def test_an_unasked_panel_is_no_error(tmp_path: Path, make_run: MakeRun) -> None:
    assert "retention.exact" not in score_run(make_run(tmp_path, drop=4))["metrics"]


def test_answered_twice(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    append_lines(run / "before.jsonl", [Answer("a", "rel", text="other")])
    with pytest.raises(BadRun, match="twice"):
        score_run(run)


def test_other_schema(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    write_json(run / "plan.json", {"schema": 2})
    with pytest.raises(BadRun, match="schema 2"):
        score_run(run)


def test_a_failed_edit_is_unscored(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    lines = (run / "answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    for a in answers:
        if a["case"] == "b" and a["tag"] == "":
            a["notes"] = {"unscored": "the loss became NaN"}
    (run / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    scores = score_run(run)
    rel = scores["metrics"]["reliability.exact"]
    assert (rel["n"], rel["unscored"]) == (3, 1)
    assert rel["value"] == pytest.approx(2 / 3, abs=1e-6)  # a and c of a, c, d
    assert scores["unscored_because"] == {"the loss became NaN": 1}
    assert scores["metrics"]["reliability.exact@own"]["n"] == 4


def test_one_lane_has_no_interval(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    plan = json.loads((run / "plan.json").read_text())
    plan["units"][0]["lanes"] = plan["units"][0]["lanes"][:1]
    write_json(run / "plan.json", plan)
    entry = score_run(run)["metrics"]["reliability.exact"]
    assert (entry["n"], entry["units"], entry["ci95"]) == (2, 1, None)
