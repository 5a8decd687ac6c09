"""Paired comparison: by hand on the run of test_score, and what must be refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from errata.core.errors import BadRun
from errata.core.files import write_json
from errata.evaluation.compare import compare_runs, compare_table, mark


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Applies `edit` to each line of a JSONL file."""
    values = [json.loads(line) for line in path.read_text().splitlines()]
    for value in values:
        edit(value)
    path.write_text("".join(json.dumps(v) + "\n" for v in values))


def all_right(answer: dict[str, Any]) -> None:
    if answer["probe"] == "rel":
        answer.update(text="new", stopped=True)


@pytest.fixture
def runs(tmp_path: Path, make_run: Callable[..., Path]) -> tuple[Path, Path]:
    """Run b answers every reliability probe rightly; a is right on a and c only."""
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    change(b / "answers.jsonl", all_right)
    return a, b


def test_difference_by_hand(runs: tuple[Path, Path]) -> None:
    result = compare_runs(*runs)
    assert (result["cases"], result["units"]) == (4, 2)
    # a 1 0 1 0, b 1 1 1 1: differences 0 1 0 1, 1/2 in either lane and so in every resample:
    # at most a share p of lanes differs, 0.025 = (1 - p)^2, down to -1 or up to 1
    share = 1 - 0.025**0.5
    assert result["metrics"]["reliability.exact"] == {
        "a": 0.5,
        "b": 1.0,
        "difference": 0.5,
        "ci95": [round(0.5 - 1.5 * share, 6), round(0.5 + 0.5 * share, 6)],
        "n": 4,
        "units": 2,
        "unpaired": 0,
    }
    assert result["metrics"]["near_locality.exact"]["difference"] == 0.0
    assert result["metrics"]["retention.exact"]["n"] == 2
    assert "joint.exact" not in result["metrics"]  # nothing was scored
    json.dumps(result, allow_nan=False)
    assert compare_runs(runs[1], runs[0])["metrics"]["reliability.exact"]["difference"] == -0.5


def test_unpaired_is_counted(runs: tuple[Path, Path]) -> None:
    def fail(answer: dict[str, Any]) -> None:
        if answer["case"] == "b" and answer["tag"] == "":
            answer["notes"] = {"unscored": "NaN"}

    change(runs[1] / "answers.jsonl", fail)
    entry = compare_runs(*runs)["metrics"]["reliability.exact"]
    # a, c, d are left: 1 0 ... a = 2/3, b = 1
    assert (entry["n"], entry["unpaired"]) == (3, 1)
    assert entry["difference"] == pytest.approx(1 / 3, abs=1e-6)


def test_lanes_that_share_a_case_are_one_unit(runs: tuple[Path, Path]) -> None:
    plan = json.loads((runs[1] / "plan.json").read_text())
    lanes = [{"id": f"m{i}", "cases": [c]} for i, c in enumerate("abcd")]
    write_json(
        runs[1] / "plan.json", {**plan, "units": [{"id": "u0", "lanes": lanes}], "panel": []}
    )
    assert compare_runs(*runs)["units"] == 2  # {a, b} and {c, d}, not 4


def test_other_cases_are_refused(runs: tuple[Path, Path]) -> None:
    plan = json.loads((runs[1] / "plan.json").read_text())
    plan["units"][0]["lanes"][1]["cases"] = ["c"]
    write_json(runs[1] / "plan.json", plan)
    with pytest.raises(BadRun, match=r"4 and 3, 3 shared; only in .*a: d"):
        compare_runs(*runs)


def test_other_probes_are_refused(runs: tuple[Path, Path]) -> None:
    plan = json.loads((runs[1] / "plan.json").read_text())
    plan["cases"][0]["edit"]["target"] = "newer"
    write_json(runs[1] / "plan.json", plan)
    with pytest.raises(BadRun, match=r"1 case with another edit .*: a\."):
        compare_runs(*runs)


def test_other_before_answers_are_refused(runs: tuple[Path, Path]) -> None:
    def other(answer: dict[str, Any]) -> None:
        if answer["case"] == "c" and answer["probe"] == "rel":
            answer["text"] = "older"

    change(runs[1] / "before.jsonl", other)
    with pytest.raises(BadRun, match=r"1 of 16 questions differently .*c/rel"):
        compare_runs(*runs)


def test_table(runs: tuple[Path, Path]) -> None:
    for run in runs:
        write_json(run / "manifest.json", {"schema": 1, "editor": f"editor_{run.name}"})
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(compare_table(compare_runs(*runs)))
    text = console.export_text()
    assert "editor_b minus editor_a" in text
    row = next(line for line in text.splitlines() if "reliability.exact " in line)
    assert "50.0" in row and "100.0" in row and "+50.0" in row, "as in `report`: per cent"
    assert "-76.3 to +92.1" in row


def test_what_differs_is_marked(runs: tuple[Path, Path]) -> None:
    result = compare_runs(*runs)
    entry = result["metrics"]["reliability.exact"]
    for ci95, expected in (([0.1, 0.9], "▲"), ([-0.9, -0.1], "▼"), ([0.0, 0.9], ""), (None, "")):
        entry["ci95"] = ci95
        assert mark(entry) == expected
    entry["ci95"] = [0.1, 0.9]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(compare_table(result, ["reliability.exact", "near_locality.exact"]))
    text = console.export_text()
    marked = [line for line in text.splitlines() if "▲" in line and ".exact" in line]
    assert len(marked) == 1 and "reliability.exact" in marked[0], "the mark survives in a pipe"
    assert "(1 of 2)" in text
