"""The scores of every case of a run under some metrics: what is averaged, resampled and paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from errata.core import registry
from errata.core.metric import Metric, ScoredProbe
from errata.core.types import DRAWN_KINDS, Kind
from errata.evaluation.run_folder import CaseAnswers, RunFolder

DEFAULT_METRICS = ("exact", "token", "joint", "first_token", "word", "judge")
#: after the last edit, after the own edit, and the controls of protocols that draw
TAGS = ("", "own", "pre", "oracle", "ceiling")
FIVE = ("reliability", "t_generality", "m_generality", "t_locality", "m_locality")
#: means over kinds, each kind with the same weight: the papers' five, and with near locality
MEANS = {"mean5": FIVE, "mean6": (*FIVE, "near_locality")}
MEAN_SCORERS = ("exact", "token")


class Column(NamedTuple):
    """What one score is about: `reliability`, `exact`, "" (after the last edit) or `own`."""

    kind: str
    scorer: str
    tag: str

    def key(self, group: str = "") -> str:
        """`<kind>[/<group>].<scorer>[@own]`."""
        tag = f"@{self.tag}" if self.tag else ""
        return f"{self.kind}{f'/{group}' if group else ''}.{self.scorer}{tag}"


@dataclass(slots=True)
class CaseScore:
    """One case under one column and group: the scores of its probes, None where unscored."""

    asked: CaseAnswers
    scores: list[float | None] = field(default_factory=list)
    base: list[float] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """The mean over the scored probes."""
        scored = [s for s in self.scores if s is not None]
        return sum(scored) / len(scored) if scored else None


Groups = dict[str, dict[str, CaseScore]]
ScoreTable = dict[Column, Groups]
"""column -> group -> case -> cell"""


def load_metrics(names: Sequence[str] | None, *runs: RunFolder) -> list[Metric]:
    """The default metrics that score anything in `runs`, and those asked for, once each.

    Raises UnknownName.
    """
    kinds = {p.kind for run in runs for case in run.cases.values() for p in case.probes}
    kinds |= {p.kind for run in runs for p in run.panel}
    asked = [registry.load("metrics", name) for name in names or ()]
    usual = [registry.load("metrics", name) for name in DEFAULT_METRICS]
    wanted = dict.fromkeys((*(m for m in usual if m.kinds & kinds), *asked))
    return [metric() for metric in wanted]


def unscored_reason(asked: CaseAnswers) -> str | None:
    """Why nothing of a case may be scored, as the runner noted it (an edit that failed, say).

    A runner sets `notes["unscored"]` on the answers that it could not get. A picture that could not
    be drawn leaves the rest of its case as it is.
    """
    for row in asked.rows:
        if row.probe.kind in DRAWN_KINDS:
            continue
        if reason := row.after.notes.get("unscored") or row.before.notes.get("unscored"):
            return str(reason)
    return None


def read_score_table(run: RunFolder, metrics: Iterable[Metric]) -> ScoreTable:
    """Scores every case of `run`, after the last edit and right after its own."""
    metrics, sheet = list(metrics), ScoreTable()
    for tag in TAGS:
        for asked in run.asked(tag):
            for metric in metrics:
                _add(sheet, metric, asked, tag)
    return sheet


def _add(sheet: ScoreTable, metric: Metric, asked: CaseAnswers, tag: str) -> None:
    failed = unscored_reason(asked) is not None
    for key, score in metric.score_case(asked.rows):
        head, _, scorer = key.rpartition(".")
        kind, _, group = head.partition("/")
        groups = sheet.setdefault(Column(kind, scorer, tag), {})
        cell = groups.setdefault(group, {}).setdefault(asked.case, CaseScore(asked))
        cell.scores.append(None if failed else score)
    for row in asked.rows:
        column = Column(row.probe.kind, metric.name, tag)
        found = sheet.get(column, {}).get(row.probe.group, {}).get(asked.case)
        if found is not None and (base := base_score(metric, row)) is not None:
            found.base.append(base)


def base_score(metric: Metric, row: ScoredProbe) -> float | None:
    """How well the untouched model already answers the reference, by the metric's own rule."""
    kind: Kind = "reliability"
    if row.probe.kind in DRAWN_KINDS:
        kind = "vqa"
    elif row.probe.kind == "reasoning":
        kind = "reasoning"
    return metric.score(row.before, row.before, replace(row.probe, kind=kind))


def select(sheet: ScoreTable, keep: Callable[[CaseAnswers], bool]) -> ScoreTable:
    """The cells of some cases."""
    out: ScoreTable = {}
    for column, groups in sheet.items():
        kept = {g: {c: x for c, x in cells.items() if keep(x.asked)} for g, cells in groups.items()}
        kept = {g: cells for g, cells in kept.items() if cells}
        if kept:
            out[column] = kept
    return out


def by_lane(cells: Mapping[str, CaseScore]) -> dict[str, list[float]]:
    """Lane -> the scores of its cases."""
    lanes: dict[str, list[float]] = {}
    for cell in cells.values():
        if (score := cell.score) is not None:
            lanes.setdefault(cell.asked.lane, []).append(score)
    return lanes
