"""Scores of a run, computed from the plan and the answers alone: again and again, with no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.core.files import read_json, write_json
from errata.core.types import TARGET_KINDS
from errata.evaluation.bootstrap import DIGITS, RESAMPLES, SEED, Bootstrap, Estimate
from errata.evaluation.run_folder import CaseAnswers, RunFolder, judge_of, read_run
from errata.evaluation.score_table import (
    MEAN_SCORERS,
    MEANS,
    TAGS,
    CaseScore,
    Column,
    Groups,
    ScoreTable,
    by_lane,
    load_metrics,
    read_score_table,
    select,
    unscored_reason,
)

SCHEMA = 1


def score_run(run: Path, metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """Scores a complete run, writes `scores.json`, and returns its content.

    `metrics` are scored besides the default ones. `metrics` in the result maps
    `<kind>[/<group>].<scorer>[@<tag>]` to {value, n, units, unscored, ci95, base}: n and unscored
    count cases (for `retention`, lanes), `units` the independent lanes that ci95 is resampled over;
    base is the untouched model's accuracy on the same references. `by_part` has the same for the
    cases of each part, `macro` the mean over the parts with equal weight; in `metrics` every case
    has equal weight. Raises BadRun, UnknownName.
    """
    folder = read_run(run)
    scorers = load_metrics(metrics, folder)
    sheet = read_score_table(folder, scorers)
    boot = Bootstrap(list(folder.lanes))
    origins = sorted({case.origin for case in folder.cases.values()})
    after = folder.asked()
    parts = _parts(folder)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "cases": sum(map(len, folder.lanes.values())),
        "units": len(folder.lanes),
        "scorers": {m.name: m.version for m in scorers},
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "over": "lanes", "level": 0.95},
        "metrics": summarise(sheet, boot),
        "by_origin": {origin: summarise(select(sheet, _from(origin)), boot) for origin in origins},
        "by_position": by_position(sheet, folder),
        "capped": _capped(after),
        "unscored_because": _reasons(after),
    }
    if parts:
        sheets = {
            name: {value: select(sheet, _among(ids)) for value, ids in values.items()}
            for name, values in parts.items()
        }
        data["by_part"] = {
            name: {value: summarise(part, boot) for value, part in found.items()}
            for name, found in sheets.items()
        }
        data["macro"] = {name: macro(list(found.values()), boot) for name, found in sheets.items()}
    if judge := judge_of(run):
        data["judge"] = judge
    write_json(run / "scores.json", data)
    return data


def rescore(run: Path) -> dict[str, Any]:
    """As `score_run`, with the metrics that the run was scored by before."""
    path = run / "scores.json"
    known = read_json(path).get("scorers", {}) if path.exists() else {}
    return score_run(run, list(known))


def summarise(sheet: ScoreTable, boot: Bootstrap) -> dict[str, dict[str, Any]]:
    """All metric entries of a sheet: groups, means over the groups, and means over kinds."""
    out: dict[str, dict[str, Any]] = {}
    for column, groups in sheet.items():
        for group, cells in groups.items():
            if group:
                out[column.key(group)] = _entry([cells], [1.0], boot)
        out[column.key()] = _entry(list(groups.values()), [1.0] * len(groups), boot)
    for scorer in MEAN_SCORERS:
        for tag in TAGS:
            for mean, wanted in MEANS.items():
                kinds = [sheet.get(Column(kind, scorer, tag)) for kind in wanted]
                if all(kinds):
                    out[Column(mean, scorer, tag).key()] = _mean_of_kinds(
                        [groups for groups in kinds if groups], boot
                    )
    return out


def _parts(run: RunFolder) -> dict[str, dict[str, set[str]]]:
    """Part -> value -> the cases of it, sorted by name."""
    found: dict[str, dict[str, set[str]]] = {}
    for case in run.cases.values():
        for name, value in case.parts:
            found.setdefault(name, {}).setdefault(value, set()).add(case.id)
    return {name: dict(sorted(values.items())) for name, values in sorted(found.items())}


def macro(parts: Sequence[ScoreTable], boot: Bootstrap) -> dict[str, dict[str, Any]]:
    """Every entry as the mean over `parts`, whatever their sizes."""
    out: dict[str, dict[str, Any]] = {}
    for column in dict.fromkeys(c for part in parts for c in part):
        held = [part[column] for part in parts if column in part]
        for group in dict.fromkeys(g for groups in held for g in groups):
            cells = [groups[group] for groups in held if group in groups]
            if group:
                out[column.key(group)] = _entry(cells, [1.0] * len(cells), boot)
        out[column.key()] = _mean_of_kinds(held, boot)
    return out


def _mean_of_kinds(kinds: Sequence[Groups], boot: Bootstrap) -> dict[str, Any]:
    cells = [cells for groups in kinds for cells in groups.values()]
    mix = [1 / len(groups) for groups in kinds for _ in groups]
    return {**_entry(cells, mix, boot), "base": None}


def _entry(
    groups: Sequence[Mapping[str, CaseScore]], mix: Sequence[float], boot: Bootstrap
) -> dict[str, Any]:
    estimate = boot.mean([by_lane(cells) for cells in groups], mix)
    seen = {case for cells in groups for case in cells}
    scored = {c for cells in groups for c, cell in cells.items() if cell.score is not None}
    return {
        "value": estimate.value if estimate else None,
        "n": len(scored),
        "units": estimate.units if estimate else 0,
        "unscored": len(seen - scored),
        "unscored_probes": sum(c.scores.count(None) for cells in groups for c in cells.values()),
        "ci95": _pair(estimate),
        "base": _base(groups),
    }


def _pair(estimate: Estimate | None) -> list[float] | None:
    return list(estimate.ci95) if estimate and estimate.ci95 else None


def _base(groups: Sequence[Mapping[str, CaseScore]]) -> float | None:
    means = []
    for cells in groups:
        per_case = [sum(c.base) / len(c.base) for c in cells.values() if c.base]
        if per_case:
            means.append(sum(per_case) / len(per_case))
    return round(sum(means) / len(means), DIGITS) if means else None


def by_position(sheet: ScoreTable, run: RunFolder) -> dict[str, dict[str, list[Any]]]:
    """The sequential curves: scores by place in the sequence, after the own and the last edit.

    Empty unless cases were asked right after their own edit.
    """
    out: dict[str, dict[str, list[Any]]] = {}
    length = max(map(len, run.lanes.values()), default=0)
    for column, groups in sheet.items():
        last = sheet.get(Column(column.kind, column.scorer, ""))
        if column.tag != "own" or last is None:
            continue
        curves = {"own": _curve(groups, length), "last": _curve(last, length)}
        out[Column(column.kind, column.scorer, "").key()] = {
            "own": [value for value, _ in curves["own"]],
            "last": [value for value, _ in curves["last"]],
            "n": [n for _, n in curves["last"]],
        }
    return out


def _curve(groups: Groups, length: int) -> list[tuple[float | None, int]]:
    points: list[tuple[float | None, int]] = []
    for position in range(length):
        here = [
            {c: x for c, x in cells.items() if x.asked.position == position and x.score is not None}
            for cells in groups.values()
        ]
        means = [
            sum(x.score or 0.0 for x in cells.values()) / len(cells) for cells in here if cells
        ]
        n = len({case for cells in here for case in cells})
        points.append((round(sum(means) / len(means), DIGITS) if means else None, n))
    return points


def _capped(after: Sequence[CaseAnswers]) -> dict[str, int]:
    """Answers to target kinds that hit the cap, and are therefore wrong."""
    return dict(
        Counter(
            row.probe.kind
            for asked in after
            for row in asked.rows
            if row.probe.kind in TARGET_KINDS and not row.after.stopped
        )
    )


def _reasons(after: Sequence[CaseAnswers]) -> dict[str, int]:
    """Why cases are unscored, and why single pictures are missing; with their number."""
    found = Counter(filter(None, map(unscored_reason, after)))
    for asked in after:
        if unscored_reason(asked) is None:
            found.update(
                str(row.after.notes["unscored"])
                for row in asked.rows
                if row.after.notes.get("unscored")
            )
    return dict(found)


def _among(cases: set[str]) -> Callable[[CaseAnswers], bool]:
    return lambda asked: asked.case in cases


def _from(origin: str) -> Callable[[CaseAnswers], bool]:
    return lambda asked: asked.origin == origin
