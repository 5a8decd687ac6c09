"""The published averages from integer counts: 959 attribute and 2007 relation cases, one overall.

Ovis-U1 with MEMIT as printed: efficacy 49.01 and 65.02, overall 59.84; VQA of the direct protocol
7.40 and 9.32, overall 8.70. The counts are the only integers that round to them. The plain mean of
the two sources, which the paper does not print, is `macro`.
"""

from __future__ import annotations

import pytest

from errata.core.measure.metric import ScoredProbe
from errata.core.types import Answer, Probe, Prompt
from errata.evaluation.run_folder import CaseAnswers
from errata.evaluation.score import Entries, macro, summarise
from errata.evaluation.score_table import CaseScore, Column, ScoreTable
from errata.evaluation.statistics.intervals import Intervals

COUNTS = {
    "efficacy": ({"attribute": (470, 959), "relation": (1305, 2007)}, (49.01, 65.02, 59.84)),
    "vqa": ({"attribute": (71, 959), "relation": (187, 2007)}, (7.40, 9.32, 8.70)),
}


def sheet_of(kind: str, source: str, right: int, of: int) -> ScoreTable:
    """Cases of one source in one sequence, the first `right` of them right."""
    column, cells = Column(kind, "judge", ""), {}
    row = ScoredProbe(Probe("p", Prompt.of("?"), "vqa"), Answer("c", "p"), Answer("c", "p"))
    for i in range(of):
        name = f"{source}-{i}"
        cells[name] = CaseScore(CaseAnswers(name, "l0", i, None, (row,)), [float(i < right)])
    return {column: {"stage1": cells}}


@pytest.mark.parametrize("kind", list(COUNTS))
def test_overall_is_the_mean_over_cases(kind: str) -> None:
    counts, printed = COUNTS[kind]
    entries = Entries(Intervals(["l0"]))
    parts = {s: sheet_of(kind, s, *c) for s, c in counts.items()}
    whole: ScoreTable = {
        column: {"stage1": {k: v for p in parts.values() for k, v in p[column]["stage1"].items()}}
        for column in (Column(kind, "judge", ""),)
    }
    key = f"{kind}/stage1.judge"
    values = [summarise(p, entries)[key] for p in parts.values()]
    overall = summarise(whole, entries)[key]
    assert [round(100 * e["value"], 2) for e in (*values, overall)] == list(printed)
    assert [e["n"] for e in (*values, overall)] == [959, 2007, 2966]
    plain = macro(list(parts.values()), entries)[key]
    assert plain["value"] == pytest.approx(sum(e["value"] for e in values) / 2, abs=1e-5)
    assert plain["n"] == 2966
