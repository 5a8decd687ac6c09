"""Paired differences between the methods of a setting, for every scorer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from errata.core import registry
from errata.core.errors import BadRun
from errata.evaluation.compare import ScoredRun, mark, paired_differences
from errata.evaluation.run_folder import read_run
from errata.evaluation.score_table import load_metrics, read_score_table
from errata.report.results import Result, Setting
from errata.report.tables import ColumnHeading, main_view

MOST_FOR_ALL_PAIRS = 4
"""With more methods, each is compared with the first one alone."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in percentage points; `clear` where its interval has no 0 in it."""

    text: str
    interval: str
    clear: str
    n: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Method b minus method a; cells by scorer, None where not both were scored."""

    a: str
    b: str
    cells: Mapping[str, tuple[Difference | None, ...]]


@dataclass(frozen=True, slots=True)
class Differences:
    """All pairs of a setting. `refused`: (label, why) of pairs that cannot be compared."""

    headings: Mapping[str, tuple[ColumnHeading, ...]]
    pairs: tuple[Pair, ...]
    refused: tuple[tuple[str, str], ...]


def differences(setting: Setting, scorers: Sequence[str]) -> Differences | None:
    """None for a single method."""
    if len(setting.results) < 2:
        return None
    headings = {s: main_view(setting, s).headings for s in scorers}
    keys = {h.key for columns in headings.values() for h in columns}
    runs = [read_run(result.path) for result in setting.results]
    named = {name for r in setting.results for name in r.scores["scorers"]}
    metrics = load_metrics(sorted(named & set(registry.names("metrics"))), *runs)
    scored = [ScoredRun(run, read_score_table(run, metrics)) for run in runs]
    pairs, refused = [], []
    for (a, one), (b, two) in _pairs(list(zip(setting.results, scored, strict=True))):
        try:
            found = paired_differences(one, two, metrics, keys)
        except BadRun as e:
            refused.append((f"{b.label} and {a.label}", str(e)))
            continue
        cells = {
            scorer: tuple(_cell(found.get(h.key)) for h in columns)
            for scorer, columns in headings.items()
        }
        pairs.append(Pair(a.label, b.label, cells))
    return Differences(headings, tuple(pairs), tuple(refused))


def _pairs(
    runs: Sequence[tuple[Result, ScoredRun]],
) -> Iterator[tuple[tuple[Result, ScoredRun], tuple[Result, ScoredRun]]]:
    if len(runs) <= MOST_FOR_ALL_PAIRS:
        return iter(combinations(runs, 2))
    return ((runs[0], other) for other in runs[1:])


def _cell(entry: Mapping[str, Any] | None) -> Difference | None:
    if entry is None:
        return None
    interval = " to ".join(f"{100 * end:+.1f}" for end in entry["ci95"] or ())
    return Difference(f"{100 * entry['difference']:+.1f}", interval, mark(entry), entry["n"])
