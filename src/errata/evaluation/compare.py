"""Two runs on the same cases: paired differences with intervals.

Both runs must have the same planned cases (with equal probes) and the same answers before any
edit; otherwise they are refused, never intersected. The unit of an interval is a lane. Where the
two runs group their cases differently (one_step against sequential), lanes that share a case count
as one unit, and the panel (`retention`), which belongs to a lane, is not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from errata.core.errors import BadRun
from errata.core.files import FilePath
from errata.core.formats.counts import counted
from errata.core.formats.validation import path_of
from errata.core.kinds import MEANS
from errata.core.measure.metric import Metric
from errata.evaluation.run_folder import PANEL, RunFolder, read_run
from errata.evaluation.score_table import (
    TAGS,
    CaseScore,
    Column,
    Groups,
    ScoreTable,
    load_metrics,
    mean_scorers,
    read_score_table,
)
from errata.evaluation.statistics.intervals import DIGITS, Intervals

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PairedScores:
    """One group's paired cases: unit -> (score in a, score in b) of each of its cases."""

    scores: Mapping[str, Sequence[tuple[float, float]]]
    cases: frozenset[str]
    unpaired: frozenset[str]

    def side(self, pick: int) -> dict[str, list[float]]:
        return {unit: [pair[pick] for pair in pairs] for unit, pairs in self.scores.items()}

    def difference(self) -> dict[str, list[float]]:
        return {unit: [b - a for a, b in pairs] for unit, pairs in self.scores.items()}


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run with the score of every case."""

    run: RunFolder
    table: ScoreTable


def paired_differences(
    a: ScoredRun, b: ScoredRun, scorers: Sequence[Metric], keys: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Differences b - a under some keys of `scores.json`, as in `compare_runs`. Raises BadRun."""
    check_paired(a.run, b.run)
    return _compare(a, b, scorers, keys)


def compare_runs(a: FilePath, b: FilePath, metrics: Sequence[str] | None = None) -> dict[str, Any]:
    """Paired differences b - a of every metric that both runs have.

    `metrics` in the result maps a key of `scores.json` to {a, b, difference, ci95, n, units,
    unpaired}: a and b are means over the paired cases, `unpaired` counts cases that only one run
    could score. Raises BadRun naming what differs.
    """
    run_a, run_b = read_run(path_of(a, "a run")), read_run(path_of(b, "a run"))
    unscored = run_a.unscored | run_b.unscored
    run_a, run_b = replace(run_a, unscored=unscored), replace(run_b, unscored=unscored)
    check_paired(run_a, run_b)
    scorers = load_metrics(metrics, run_a, run_b)
    one, two = (ScoredRun(run, read_score_table(run, scorers)) for run in (run_a, run_b))
    return {
        "schema": SCHEMA,
        "a": _facts(run_a),
        "b": _facts(run_b),
        "cases": sum(map(len, run_a.lanes.values())),
        "units": len(set(units_of(run_a, run_b).values())),
        "metrics": _compare(one, two, scorers),
    }


def _compare(
    a: ScoredRun, b: ScoredRun, scorers: Sequence[Metric], keys: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """keys: the scores that are compared; None: all that both runs have."""
    unit_of = units_of(a.run, b.run)
    intervals = Intervals(sorted(set(unit_of.values())))
    parts = paired_parts(a, b, unit_of, mean_scorers(scorers), keys)
    entries = {key: _entry(pairs, mix, intervals) for key, (pairs, mix) in parts.items()}
    return {key: entry for key, entry in entries.items() if entry is not None}


def paired_parts(
    a: ScoredRun,
    b: ScoredRun,
    unit_of: Mapping[str, str],
    with_means: Sequence[str],
    keys: Collection[str] | None = None,
) -> dict[str, tuple[list[PairedScores], list[float]]]:
    """Key of scores.json -> what its difference is the mean of, with the weight of each part.

    keys: the scores that are compared; None: all that both runs have.
    """
    shared = set(a.table) & set(b.table)
    if a.run.lanes != b.run.lanes:
        panel = {probe.kind for one in (a, b) for probe in one.run.panel}
        shared = {column for column in shared if column.kind not in panel}
    paired = {
        column: _pair_groups(groups, b.table[column], unit_of)
        for column, groups in a.table.items()
        if column in shared
    }
    return _parts(paired, with_means, keys)


def _parts(
    paired: Mapping[Column, Mapping[str, PairedScores]],
    with_means: Sequence[str],
    keys: Collection[str] | None,
) -> dict[str, tuple[list[PairedScores], list[float]]]:
    def wanted(key: str) -> bool:
        return keys is None or key in keys

    out: dict[str, tuple[list[PairedScores], list[float]]] = {}
    for column, pairs in paired.items():
        for group, one in pairs.items():
            if group and wanted(column.key(group)):
                out[column.key(group)] = [one], [1.0]
        if wanted(column.key()):
            out[column.key()] = list(pairs.values()), [1.0] * len(pairs)
    for scorer in with_means:
        for tag in TAGS:
            for mean in MEANS.values():
                key = Column(mean.name, scorer, tag).key()
                kinds = [paired.get(Column(kind, scorer, tag)) for kind in mean.kinds]
                if all(kinds) and wanted(key):
                    flat = [(p, 1 / len(k)) for k in kinds if k for p in k.values()]
                    out[key] = [p for p, _ in flat], [w for _, w in flat]
    return out


def _pair_groups(a: Groups, b: Groups, unit_of: Mapping[str, str]) -> dict[str, PairedScores]:
    return {g: _pair(a.get(g, {}), b.get(g, {}), unit_of) for g in dict.fromkeys((*a, *b))}


def _pair(
    a: Mapping[str, CaseScore], b: Mapping[str, CaseScore], unit_of: Mapping[str, str]
) -> PairedScores:
    scores: dict[str, list[tuple[float, float]]] = {}
    cases: dict[str, bool] = {}
    for case in dict.fromkeys((*a, *b)):
        one = a[case].score if case in a else None
        two = b[case].score if case in b else None
        if one is not None and two is not None:
            scores.setdefault(unit_of[case], []).append((one, two))
        if one is not None or two is not None:
            cases[case] = one is not None and two is not None
    both, single = (
        frozenset(c for c, paired in cases.items() if paired is p) for p in (True, False)
    )
    return PairedScores(scores, both, single)


def _entry(
    pairs: Sequence[PairedScores], mix: Sequence[float], intervals: Intervals
) -> dict[str, Any] | None:
    difference = intervals.mean([p.difference() for p in pairs], mix, within=(-1.0, 1.0))
    a, b = (intervals.mean([p.side(i) for p in pairs], mix) for i in (0, 1))
    if difference is None or a is None or b is None:
        return None
    return {
        "a": a.value,
        "b": b.value,
        "difference": round(difference.value, DIGITS),
        "ci95": list(difference.ci95) if difference.ci95 else None,
        "n": len(frozenset[str]().union(*(p.cases for p in pairs))),
        "units": difference.units,
        "unpaired": len(frozenset[str]().union(*(p.unpaired for p in pairs))),
    }


def units_of(a: RunFolder, b: RunFolder) -> dict[str, str]:
    """Case -> independent unit: the lanes of both runs, joined where they share a case.

    Where intervals are over the cases of one lane in both runs, each case.
    """
    if a.over == b.over == "cases" and a.lanes == b.lanes:
        return {unit: unit for unit in a.units}
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    for run in (a, b):
        for lane, cases in run.lanes.items():
            for case in (*cases, *((f"{PANEL}/{lane}",) if a.lanes == b.lanes else ())):
                first, second = sorted((root(cases[0]), root(case)))
                parent[second] = first
    return {case: root(case) for case in list(parent)}


def check_paired(a: RunFolder, b: RunFolder) -> None:
    """Raises BadRun where the runs did not ask the same questions of the same unedited model."""
    _check_cases(a, b)
    _check_before(a, b)


def _check_cases(a: RunFolder, b: RunFolder) -> None:
    ids_a, ids_b = ({c for lane in run.lanes.values() for c in lane} for run in (a, b))
    if ids_a != ids_b:
        only = "; ".join(
            f"only in {run.path}: {_some(sorted(ids))}"
            for run, ids in ((a, ids_a - ids_b), (b, ids_b - ids_a))
            if ids
        )
        raise BadRun(
            f"the runs did not ask the same cases ({len(ids_a)} and {len(ids_b)}, "
            f"{len(ids_a & ids_b)} shared; {only}). Repeat one of them with the benchmark, limit "
            "and seed of the other."
        )
    other = [c for c in sorted(ids_a) if a.cases[c] != b.cases[c]]
    if other:
        raise BadRun(
            f"the runs have the same case ids, but {counted(len(other), 'case')} with "
            f"another edit or other probes: {_some(other)}. Plan both with one version of the "
            "data and one backbone."
        )


def _check_before(a: RunFolder, b: RunFolder) -> None:
    def answered(run: RunFolder, key: tuple[str, str]) -> tuple[object, ...] | None:
        answer = run.before.get(key)
        return (answer.text, answer.ids, answer.stopped) if answer else None

    if a.panel != b.panel and a.lanes == b.lanes:
        raise BadRun("the runs have different retention panels. Repeat one of them.")
    keys = [(PANEL, probe.id) for probe in a.panel if a.lanes == b.lanes]
    keys += [
        (case, probe.id)
        for lane in a.lanes.values()
        for case in lane
        for probe in a.cases[case].probes
    ]
    other = [f"{c}/{p}" for c, p in keys if answered(a, (c, p)) != answered(b, (c, p))]
    if other:
        fingerprints = [str(run.manifest.get("fingerprint"))[:12] for run in (a, b)]
        raise BadRun(
            f"the unedited model answered {len(other)} of {counted(len(keys), 'question')} "
            f"differently in the two runs ({_some(other)}; backbone fingerprints "
            f"{' and '.join(fingerprints)}). Repeat one of them with the backbone and precision of "
            "the other."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _facts(run: RunFolder) -> dict[str, Any]:
    keys = ("backbone", "editor", "arguments", "benchmark", "protocol", "seed")
    return {"run": run.path.name, **{k: run.manifest.get(k) for k in keys}}


HIGHER, LOWER = "▲", "▼"


def mark(entry: Mapping[str, Any]) -> str:
    """Whether b is higher or lower than a; "" where the interval has 0 in it."""
    low, high = entry["ci95"] or (0.0, 0.0)
    return HIGHER if low > 0 else LOWER if high < 0 else ""


def compare_table(result: Mapping[str, Any], keys: Iterable[str] | None = None) -> Table:
    """A terminal table of `compare_runs`, in per cent; differences beyond their interval marked."""
    from rich.markup import escape
    from rich.table import Table

    a, b = result["a"], result["b"]
    by = "editor" if a["editor"] != b["editor"] else "run"
    name_a, name_b = escape(str(a[by])), escape(str(b[by]))
    shown = list(keys if keys is not None else result["metrics"])
    entries = [result["metrics"][key] for key in shown]
    marked = sum(bool(mark(e)) for e in entries)
    table = Table(
        title=f"{name_b} minus {name_a}, per cent, paired over "
        f"{counted(result['cases'], 'case')} in {counted(result['units'], 'unit')}",
        caption=f"{HIGHER} {name_b} is higher, {LOWER} lower: the 95 % interval of the difference "
        f"has no 0 in it ({marked} of {len(shown)}). By chance alone, about one in 20 would be "
        "marked. n: cases that both runs scored; unpaired: cases that only one could score.",
    )
    table.add_column("score")
    for heading in (name_a, name_b, "difference", "", "95 % interval", "n", "units", "unpaired"):
        table.add_column(heading, justify="right")
    for key, entry in zip(shown, entries, strict=True):
        ci = entry["ci95"]
        table.add_row(
            key,
            f"{100 * entry['a']:.1f}",
            f"{100 * entry['b']:.1f}",
            f"{100 * entry['difference']:+.1f}",
            mark(entry),
            f"{100 * ci[0]:+.1f} to {100 * ci[1]:+.1f}" if ci else "one unit",
            str(entry["n"]),
            str(entry["units"]),
            str(entry["unpaired"]),
            style="bold" if mark(entry) else None,
        )
    return table
