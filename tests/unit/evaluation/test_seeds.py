"""One row from several runs of the same cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from errata.core.errors import BadRun
from errata.evaluation.compare import compare_runs
from errata.evaluation.score import score_run
from errata.evaluation.statistics.seeds import combine_runs, compare_seeds

MakeRun = Callable[..., Path]


def _changed(run: Path, out: Path, case: str, text: str) -> Path:
    """A copy in which the last answer to the edit of one case is another."""
    shutil.copytree(run, out)
    lines = (out / "answers.jsonl").read_text().splitlines()
    for i, line in enumerate(lines):
        answer = json.loads(line)
        if (answer["case"], answer["probe"], answer["tag"]) == (case, "rel", ""):
            lines[i] = json.dumps({**answer, "text": text, "stopped": True})
    (out / "answers.jsonl").write_text("\n".join(lines) + "\n")
    return out


def test_a_row_of_seeds_is_the_mean_of_its_runs(tmp_path: Path, make_run: MakeRun) -> None:
    one = make_run(tmp_path / "one")
    two = _changed(one, tmp_path / "two", "b", "new")
    row = combine_runs([one, two])["metrics"]["reliability.exact"]
    values = [score_run(r)["metrics"]["reliability.exact"]["value"] for r in (one, two)]
    assert row["runs"] == values == [0.5, 0.75]
    assert (row["value"], row["n"], row["units"]) == (0.625, 4, 2)
    low, high = row["ci95"]
    assert low < 0.5 and high > 0.75, "two seeds that differ by 25 points say little"


def test_a_difference_over_seeds(tmp_path: Path, make_run: MakeRun) -> None:
    one = make_run(tmp_path / "one")
    better = [_changed(one, tmp_path / f"b{i}", c, "new") for i, c in enumerate("bb")]
    found = compare_seeds([one, one], better)["metrics"]["reliability.exact"]
    alone = compare_runs(one, better[0])["metrics"]["reliability.exact"]
    assert found["difference"] == alone["difference"] == 0.25
    assert found["runs"] == [0.25, 0.25]
    assert found["ci95"] == pytest.approx(alone["ci95"]), "seeds that agree add nothing"


def test_runs_of_other_cases_make_no_row(tmp_path: Path, make_run: MakeRun) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    with pytest.raises(BadRun, match="at least two"):
        combine_runs([one])
    plan = json.loads((two / "plan.json").read_text())
    plan["units"][0]["lanes"][0]["cases"] = ["b", "a"]
    (two / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadRun, match=r"lanes differ.*--state"):
        combine_runs([one, two])
    with pytest.raises(BadRun, match="as many runs"):
        compare_seeds([one, one], [one])
