"""One row from several runs of the same cases, such as one run per training seed of an editor.

The interval of a score holds for other cases and for another training run: see
`Intervals.over_runs`. A run of one training seed cannot say how much the next one would differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import FilePath
from errata.core.formats.validation import path_of
from errata.evaluation.compare import (
    PairedScores,
    ScoredRun,
    check_paired,
    paired_parts,
    units_of,
)
from errata.evaluation.run_folder import RunFolder, read_run
from errata.evaluation.score import Share, shares
from errata.evaluation.score_table import by_unit, load_metrics, mean_scorers, read_score_table
from errata.evaluation.statistics.intervals import Estimate, Intervals

SCHEMA = 1


def combine_runs(runs: Sequence[FilePath], metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """The mean of every score over `runs`, which edited the same cases in the same lanes.

    `metrics` in the result maps a key of `scores.json` to {value, n, units, ci95, base, runs}: n
    counts cases, `runs` holds the value of each run. A score that a run lacks is left out. Raises
    BadRun naming what differs.
    """
    if len(runs) < 2:
        raise BadRun(f"one row over seeds takes at least two runs, {len(runs)} given.")
    folders = [read_run(path_of(run, "a run")) for run in runs]
    for folder in folders[1:]:
        _check_same(folders[0], folder)
    scorers = load_metrics(metrics, *folders)
    with_means = mean_scorers(scorers)
    tables = [shares(read_score_table(folder, scorers), with_means) for folder in folders]
    intervals = Intervals(folders[0].units, folders[0].over)
    return {
        "schema": SCHEMA,
        "runs": [folder.path.name for folder in folders],
        "cases": sum(map(len, folders[0].lanes.values())),
        "units": len(folders[0].lanes),
        "metrics": {
            key: _entry([table[key] for table in tables], intervals)
            for key in tables[0]
            if all(key in table for table in tables)
        },
    }


def compare_seeds(
    a: Sequence[FilePath], b: Sequence[FilePath], metrics: Sequence[str] | None = None
) -> dict[str, Any]:
    """Paired differences b - a over training seeds: run i of `b` less run i of `a`.

    As `compare_runs`, with an interval that holds for other training runs of both. Raises BadRun.
    """
    if len(a) != len(b) or len(a) < 2:
        raise BadRun(
            f"a difference over seeds takes as many runs of both editors, at least two: {len(a)} "
            f"and {len(b)} given."
        )
    sides = [[read_run(path_of(run, "a run")) for run in runs] for runs in (a, b)]
    for side in sides:
        for folder in side[1:]:
            _check_same(side[0], folder)
    check_paired(sides[0][0], sides[1][0])
    scorers = load_metrics(metrics, *sides[0], *sides[1])
    scored = [[ScoredRun(run, read_score_table(run, scorers)) for run in side] for side in sides]
    unit_of = units_of(sides[0][0], sides[1][0])
    intervals = Intervals(sorted(set(unit_of.values())))
    parts = [
        paired_parts(one, two, unit_of, mean_scorers(scorers))
        for one, two in zip(*scored, strict=True)
    ]
    found = {
        key: _difference([part[key] for part in parts], intervals)
        for key in parts[0]
        if all(key in part for part in parts)
    }
    return {"schema": SCHEMA, "metrics": {key: entry for key, entry in found.items() if entry}}


def _difference(
    parts: Sequence[tuple[list[PairedScores], list[float]]], intervals: Intervals
) -> dict[str, Any] | None:
    runs = [[pairs.difference() for pairs in part] for part, _ in parts]
    estimate = intervals.over_runs(runs, parts[0][1], within=(-1.0, 1.0))
    if estimate is None:
        return None
    return {
        "difference": estimate.value,
        "ci95": list(estimate.ci95) if estimate.ci95 else None,
        "units": estimate.units,
        "runs": [_value(intervals.mean(one, parts[0][1])) for one in runs],
    }


def _entry(of_runs: Sequence[Share], intervals: Intervals) -> dict[str, Any]:
    scores = [[by_unit(cases, intervals.over) for cases in share.groups] for share in of_runs]
    weights = of_runs[0].weights
    estimate = intervals.over_runs(scores, weights, within=(0.0, 1.0))
    scored = {
        name
        for share in of_runs
        for cases in share.groups
        for name, case in cases.items()
        if case.score is not None
    }
    return {
        "value": estimate.value if estimate else None,
        "n": len(scored),
        "units": estimate.units if estimate else 0,
        "ci95": list(estimate.ci95) if estimate and estimate.ci95 else None,
        "runs": [_value(intervals.mean(one, weights)) for one in scores],
    }


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _check_same(a: RunFolder, b: RunFolder) -> None:
    for what, one, two in (
        ("backbone", a.manifest.get("backbone"), b.manifest.get("backbone")),
        ("editor", a.manifest.get("editor"), b.manifest.get("editor")),
        ("protocol", a.manifest.get("protocol"), b.manifest.get("protocol")),
        ("lanes", a.lanes, b.lanes),
        ("cases", a.cases, b.cases),
    ):
        if one != two:
            raise BadRun(
                f"{a.path} and {b.path} are not runs of one plan: their {what} differ. Runs of "
                "several training seeds take one --seed for `errata bench`, and another --state."
            )
