"""The score of every case of a run in every column: what is averaged and paired."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric, ScoredProbe
from errata.core.types import Probe
from errata.evaluation.run_folder import CaseAnswers, RunFolder

DEFAULT_METRICS = ("exact", "token", "joint", "first_token", "word", "judge", "probability")
#: After the last edit, after the case's own edit, and the controls of protocols that draw.
TAGS = ("", "own", "pre", "oracle", "ceiling")


class Column(NamedTuple):
    """Which score: `reliability`, `exact`, and a tag: "" after the last edit, `own`, ..."""

    kind: str
    scorer: str
    tag: str

    def key(self, group: str = "") -> str:
        """`<kind>[/<group>].<scorer>[@<tag>]`."""
        tag = f"@{self.tag}" if self.tag else ""
        return f"{self.kind}{f'/{group}' if group else ''}.{self.scorer}{tag}"


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case in one column and group: the scores of its probes, None where unscored.

    `base` holds the unedited model's scores on the same probes, see `base_score`.
    """

    answers: CaseAnswers
    scores: Sequence[float | None]
    base: Sequence[float] = ()
    score: float | None = field(init=False)
    """The mean over the scored probes."""

    def __post_init__(self) -> None:
        scored = [s for s in self.scores if s is not None]
        object.__setattr__(self, "score", sum(scored) / len(scored) if scored else None)


Groups = dict[str, dict[str, CaseScore]]
ScoreTable = dict[Column, Groups]
"""column -> group -> case -> its score"""
Place = tuple[Column, str]
"""A column and a group of it."""


def load_metrics(names: Sequence[str] | None, *runs: RunFolder) -> list[Metric]:
    """The default metrics that score some kind of probe in `runs`, and those called `names`.

    Of runs that generated nothing, the metrics that need nothing generated. Raises UnknownName,
    and BadSpec for such a run and another metric.
    """
    kinds = [kind for run in runs for kind in probe_kinds(run).values()]
    contrasts = any(p.contrast for run in runs for c in run.cases.values() for p in c.probes)
    default = [registry.load("metrics", name) for name in DEFAULT_METRICS]
    default = [metric for metric in default if contrasts or not metric.reads_contrast]
    extra = [registry.load("metrics", name) for name in names or ()]
    if any(run.manifest.get("forced") for run in runs):
        default = [metric for metric in default if metric.forced]
        check_forced(extra)
    wanted = dict.fromkeys((*(m for m in default if any(map(m.applies, kinds))), *extra))
    return [metric() for metric in wanted]


def check_forced(metrics: Iterable[type[Metric]]) -> None:
    """Raises BadSpec for a metric that reads generated answers, where none are generated."""
    for metric in metrics:
        if not metric.forced:
            known = (registry.load("metrics", name) for name in registry.names("metrics"))
            raise BadSpec(
                f"metric '{metric.name}' reads generated answers, and a run with --forced has "
                "none. Leave --forced out, or use: "
                f"{', '.join(m.name for m in known if m.forced)}."
            )


def probe_kinds(run: RunFolder) -> dict[str, ProbeKind]:
    """The kinds of the run's probes, by name."""
    probes = [p for case in run.cases.values() for p in case.probes]
    return {p.kind: p.kind_info for p in (*probes, *run.panel)}


def mean_scorers(metrics: Iterable[Metric]) -> list[str]:
    """The scorers that the means over kinds are computed for."""
    return [scorer.name for metric in metrics for scorer in metric.scorers() if scorer.means]


def unscored_reason(answers: CaseAnswers) -> str | None:
    """Why a whole case is unscored, such as an edit that failed; None where it is scored.

    A runner sets `notes["unscored"]` on answers that it could not get. An image that could not be
    generated does not make the rest of its case unscored.
    """
    for row in answers.rows:
        if row.probe.kind_info.drawn:
            continue
        if reason := row.after.notes.get("unscored") or row.before.notes.get("unscored"):
            return str(reason)
    return None


def read_score_table(run: RunFolder, metrics: Iterable[Metric]) -> ScoreTable:
    """Scores every case of `run` by `metrics`, under every tag."""
    metrics, table = list(metrics), ScoreTable()
    once = _Once()
    for tag in TAGS:
        for answers in run.asked(tag):
            targets = [_as_target(row.probe) for row in answers.rows]
            failed = unscored_reason(answers) is not None
            for metric in metrics:
                found = _by_place(metric.score_case(answers.rows), tag, failed)
                based = _base_scores(metric, answers, targets, tag, found)
                for place, scores in found.items():
                    column, group = place
                    table.setdefault(column, {}).setdefault(group, {})[answers.case] = CaseScore(
                        answers, once[tuple(scores)], once[tuple(based.get(place, ()))]
                    )
    return table


class _Once(dict[tuple[Any, ...], tuple[Any, ...]]):
    """Equal tuples of scores as one tuple: a run has few of them, each many times."""

    def __missing__(self, one: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.setdefault(one, one)


def _by_place(
    scored: Iterable[tuple[str, float | None]], tag: str, failed: bool
) -> dict[Place, list[float | None]]:
    found: dict[Place, list[float | None]] = {}
    for key, score in scored:
        head, _, scorer = key.rpartition(".")
        kind, _, group = head.partition("/")
        found.setdefault((Column(kind, scorer, tag), group), []).append(None if failed else score)
    return found


def _base_scores(
    metric: Metric,
    answers: CaseAnswers,
    targets: Sequence[Probe],
    tag: str,
    places: Container[Place],
) -> dict[Place, list[float]]:
    """What the unedited model scores, of the probes that the metric scores."""
    found: dict[Place, list[float]] = {}
    for row, target in zip(answers.rows, targets, strict=True):
        place = Column(row.probe.kind, metric.name, tag), row.probe.group
        if place in places:
            base = metric.score(row.before, row.before, target)
            if base is not None:
                found.setdefault(place, []).append(base)
    return found


def base_score(metric: Metric, row: ScoredProbe) -> float | None:
    """The unedited model's score on the probe's reference, by the metric's rule for targets."""
    return metric.score(row.before, row.before, _as_target(row.probe))


def _as_target(probe: Probe) -> Probe:
    """The probe as one whose reference is the wanted answer."""
    if probe.kind_info.side != "locality":
        return probe
    kind = "vqa" if probe.kind_info.drawn else "reliability"
    return replace(probe, kind=kind, custom_kind=None)


def select(table: ScoreTable, keep: Callable[[CaseAnswers], bool]) -> ScoreTable:
    """The table of the cases that `keep` accepts."""
    out: ScoreTable = {}
    for column, groups in table.items():
        kept = {
            g: {case: score for case, score in cases.items() if keep(score.answers)}
            for g, cases in groups.items()
        }
        # a group that stays whole stays the same object: what is known of it holds
        kept = {
            g: groups[g] if len(cases) == len(groups[g]) else cases
            for g, cases in kept.items()
            if cases
        }
        if kept:
            out[column] = kept
    return out


def by_unit(cases: Mapping[str, CaseScore], over: str = "lanes") -> dict[str, Sequence[float]]:
    """Independent unit -> the scores of its cases. over: as in `RunFolder`."""
    units: dict[str, list[float]] = {}
    for case in cases.values():
        if (score := case.score) is not None:
            answers = case.answers
            unit = answers.lane if over == "lanes" else answers.case
            units.setdefault(unit, []).append(score)
    once = _Once()
    return {unit: once[tuple(scores)] for unit, scores in units.items()}
