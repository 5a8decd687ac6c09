"""Scores of a run, computed from its plan and answers alone; no model is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errata.core.files import FilePath, read_as
from errata.core.formats.collector import without_collector
from errata.core.formats.run_files import SCHEMA, StoredScores, judge_of, write_scores
from errata.core.formats.validation import path_of
from errata.core.kinds import KINDS, MEANS
from errata.core.types import to_json
from errata.evaluation.other_scopes import by_kind
from errata.evaluation.run_folder import CaseAnswers, RunFolder, read_run
from errata.evaluation.score_table import (
    TAGS,
    CaseScore,
    Column,
    Groups,
    ScoreTable,
    by_unit,
    load_metrics,
    mean_scorers,
    probe_kinds,
    read_score_table,
    select,
    unscored_reason,
)
from errata.evaluation.statistics.intervals import (
    DIGITS,
    METHOD,
    WHERE_ALL_AGREE,
    Estimate,
    Intervals,
)


@without_collector()
def score_run(run: FilePath, metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """Scores a complete run, writes `scores.json`, and returns its content.

    `metrics` are computed besides the default ones. `metrics` in the result maps
    `<kind>[/<group>].<scorer>[@<tag>]` to {value, n, units, unscored, ci95, base}: n and unscored
    count cases (for `retention`, lanes), `units` the independent lanes that ci95 is over;
    base is the unedited model's accuracy on the same references. `by_part` has the same for the
    cases of each part, `macro` the mean over the parts with equal weight; in `metrics` every case
    has equal weight. `in_other_scope` counts questions that are not scored because another edit of
    their sequence changes their answer. `kinds` describes the kinds of probes that errata does not
    have, if any. Raises BadRun, UnknownName.
    """
    run = path_of(run, "a run")
    folder = read_run(run)
    scorers = load_metrics(metrics, folder)
    table = read_score_table(folder, scorers)
    with_means = mean_scorers(scorers)
    entries = Entries(Intervals(folder.units, folder.over))
    origins = sorted({case.origin for case in folder.cases.values()})
    after = folder.asked()
    parts = _parts(folder)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "cases": sum(map(len, folder.lanes.values())),
        "units": len(folder.lanes),
        "scorers": {m.name: m.version for m in scorers},
        "intervals": {
            "method": METHOD,
            "over": folder.over,
            "level": 0.95,
            "where_all_agree": WHERE_ALL_AGREE,
        },
        "metrics": summarise(table, entries, with_means),
        "by_origin": {
            origin: summarise(select(table, _from(origin)), entries, with_means)
            for origin in origins
        },
        "by_position": by_position(table, folder),
        "capped": _capped(after),
        "unscored_because": _reasons(after),
    }
    custom = {name: to_json(k) for name, k in probe_kinds(folder).items() if name not in KINDS}
    if custom:
        data["kinds"] = custom
    if parts:
        tables = {
            name: {value: select(table, _among(ids)) for value, ids in values.items()}
            for name, values in parts.items()
        }
        data["by_part"] = {
            name: {value: summarise(part, entries, with_means) for value, part in by_value.items()}
            for name, by_value in tables.items()
        }
        data["macro"] = {
            name: macro(list(by_value.values()), entries) for name, by_value in tables.items()
        }
    if folder.unscored:
        data["in_other_scope"] = by_kind(folder.cases, folder.unscored)
    if judge := judge_of(run):
        data["judge"] = judge
    write_scores(run, data)
    return data


def rescore(run: Path) -> dict[str, Any]:
    """As `score_run`, with the metrics that the run was scored by last time."""
    path = run / "scores.json"
    metrics = read_as(StoredScores, path).scorers if path.exists() else {}
    return score_run(run, list(metrics))


def summarise(
    table: ScoreTable, entries: Entries, with_means: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """One entry per column and group, per column, and per mean over kinds.

    with_means: the scorers that have means over kinds.
    """
    out: dict[str, dict[str, Any]] = {}
    for key, share in shares(table, with_means).items():
        entry = entries.of(share.groups, share.weights)
        out[key] = entry if share.has_base else {**entry, "base": None}
    return out


class Share(NamedTuple):
    """What one entry is the mean of: groups of cases, and the weight of each."""

    groups: Sequence[Mapping[str, CaseScore]]
    weights: Sequence[float]
    has_base: bool = True


def shares(table: ScoreTable, with_means: Sequence[str] = ()) -> dict[str, Share]:
    """The entries of `summarise`, before anything is averaged."""
    out: dict[str, Share] = {}
    for column, groups in table.items():
        for group, cases in groups.items():
            if group:
                out[column.key(group)] = Share([cases], [1.0])
        out[column.key()] = Share(list(groups.values()), [1.0] * len(groups))
    for scorer in with_means:
        for tag in TAGS:
            for mean in MEANS.values():
                kinds = [table.get(Column(kind, scorer, tag)) for kind in mean.kinds]
                if all(kinds):
                    key = Column(mean.name, scorer, tag).key()
                    out[key] = _of_kinds([groups for groups in kinds if groups])
    return out


def _parts(run: RunFolder) -> dict[str, dict[str, set[str]]]:
    """Part -> value -> the ids of its cases, sorted by name."""
    parts: dict[str, dict[str, set[str]]] = {}
    for case in run.cases.values():
        for name, value in case.parts:
            parts.setdefault(name, {}).setdefault(value, set()).add(case.id)
    return {name: dict(sorted(values.items())) for name, values in sorted(parts.items())}


def macro(parts: Sequence[ScoreTable], entries: Entries) -> dict[str, dict[str, Any]]:
    """Every entry as the mean over `parts`, whatever their sizes."""
    out: dict[str, dict[str, Any]] = {}
    for column in dict.fromkeys(c for part in parts for c in part):
        held = [part[column] for part in parts if column in part]
        for group in dict.fromkeys(g for groups in held for g in groups):
            cases = [groups[group] for groups in held if group in groups]
            if group:
                out[column.key(group)] = entries.of(cases, [1.0] * len(cases))
        share = _of_kinds(held)
        out[column.key()] = {**entries.of(share.groups, share.weights), "base": None}
    return out


def _of_kinds(kinds: Sequence[Groups]) -> Share:
    cases = [cases for groups in kinds for cases in groups.values()]
    return Share(cases, [1 / len(groups) for groups in kinds for _ in groups], has_base=False)


class Entries:
    """The entries of scores.json. Tables that share groups of cases share what is computed."""

    def __init__(self, intervals: Intervals) -> None:
        self._intervals = intervals
        self._made: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._groups: dict[int, _Group] = {}

    def of(
        self, groups: Sequence[Mapping[str, CaseScore]], weights: Sequence[float]
    ) -> dict[str, Any]:
        key = (*map(id, groups), *weights)
        if key not in self._made:
            self._made[key] = self._entry([self._group(cases) for cases in groups], weights)
        return self._made[key]

    def _group(self, cases: Mapping[str, CaseScore]) -> _Group:
        if id(cases) not in self._groups:
            self._groups[id(cases)] = _Group.of(cases, self._intervals.over)
        return self._groups[id(cases)]

    def _entry(self, groups: Sequence[_Group], weights: Sequence[float]) -> dict[str, Any]:
        estimate = self._intervals.mean([g.units for g in groups], weights, within=(0.0, 1.0))
        scored = set().union(*(g.scored for g in groups))
        return {
            "value": estimate.value if estimate else None,
            "n": len(scored),
            "units": estimate.units if estimate else 0,
            "unscored": len(set().union(*(g.cases for g in groups)) - scored),
            "unscored_probes": sum(g.unscored_probes for g in groups),
            "ci95": _pair(estimate),
            "base": _mean([g.base for g in groups if g.base is not None]),
        }


class _Group(NamedTuple):
    """What entries need of a group of cases. base: the mean of what the unedited model scores."""

    cases: Mapping[str, CaseScore]  # kept, so that its id stays its own
    units: Mapping[str, Sequence[float]]
    scored: frozenset[str]
    unscored_probes: int
    base: float | None

    @classmethod
    def of(cls, cases: Mapping[str, CaseScore], over: str) -> _Group:
        based = [sum(c.base) / len(c.base) for c in cases.values() if c.base]
        return cls(
            cases=cases,
            units=by_unit(cases, over),
            scored=frozenset(name for name, c in cases.items() if c.score is not None),
            unscored_probes=sum(c.scores.count(None) for c in cases.values()),
            base=sum(based) / len(based) if based else None,
        )


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), DIGITS) if values else None


def _pair(estimate: Estimate | None) -> list[float] | None:
    return list(estimate.ci95) if estimate and estimate.ci95 else None


def by_position(table: ScoreTable, run: RunFolder) -> dict[str, dict[str, list[Any]]]:
    """Scores by the case's position in its sequence, after its own edit and after the last one.

    Empty unless cases were asked right after their own edit.
    """
    out: dict[str, dict[str, list[Any]]] = {}
    length = max(map(len, run.lanes.values()), default=0)
    for column, groups in table.items():
        last = table.get(Column(column.kind, column.scorer, ""))
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
            {
                name: case
                for name, case in cases.items()
                if case.answers.position == position and case.score is not None
            }
            for cases in groups.values()
        ]
        means = [
            sum(c.score or 0.0 for c in cases.values()) / len(cases) for cases in here if cases
        ]
        n = len({name for cases in here for name in cases})
        points.append((round(sum(means) / len(means), DIGITS) if means else None, n))
    return points


def _capped(after: Sequence[CaseAnswers]) -> dict[str, int]:
    """Kind -> answers that should be the target, but hit the cap and are therefore wrong."""
    return dict(
        Counter(
            row.probe.kind
            for answers in after
            for row in answers.rows
            if row.probe.kind_info.expects_target and not row.after.stopped
        )
    )


def _reasons(after: Sequence[CaseAnswers]) -> dict[str, int]:
    """Reason -> number of unscored cases, or of single images or answers that are missing."""
    reasons = Counter(filter(None, map(unscored_reason, after)))
    for answers in after:
        if unscored_reason(answers) is None:
            silent = sum(
                row.probe.kind_info.keeps_answer and not row.before.text.strip()
                for row in answers.rows
            )
            if silent:
                reasons["the unedited model gives no answer that could be kept"] += silent
            reasons.update(
                str(row.after.notes["unscored"])
                for row in answers.rows
                if row.after.notes.get("unscored")
            )
    return dict(reasons)


def _among(cases: set[str]) -> Callable[[CaseAnswers], bool]:
    return lambda answers: answers.case in cases


def _from(origin: str) -> Callable[[CaseAnswers], bool]:
    return lambda answers: answers.origin == origin
