"""Contract of a metric: scores between 0 and 1, and None (unscored) instead of a made-up zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from errata.contract._names import named
from errata.core.kinds import KINDS
from errata.core.measure.metric import Metric, ScoredProbe
from errata.core.types import Answer, JudgeQuestion, Probe, Prompt, Scored, Verdict


def checks(cls: type[Metric]) -> list[tuple[str, Callable[[], None]]]:
    return [(named(f), partial(f, cls())) for n, f in globals().items() if n.startswith("holds_")]


def rows() -> list[ScoredProbe]:
    """A probe of every kind, with several answers and without one."""
    view = JudgeQuestion("Which thing?", "It is a red ring.", "red ring", "blue")
    judged, dark = Verdict("j", "red ring", True), Verdict("j", note="too dark")
    right = Scored((4, 5), (-0.1, -0.2), (4, 5))
    wrong = Scored((4, 5), (-2.0, -3.0), (9, 9))
    answers = [
        Answer("c", "p", text="red ring", ids=(4, 5), reference=right, own=right),
        Answer("c", "p", text="blue", ids=(9,), reference=wrong, own=wrong),
        Answer("c", "p", text="", ids=()),
        Answer("c", "p", text="red ring red", ids=(4, 5, 4), stopped=False, reference=right),
        Answer("c", "p", images=("a.png", "b.png"), verdicts=(judged, dark)),
        Answer("c", "p", images=("a.png",), verdicts=(dark,)),
    ]
    probes = [Probe("p", Prompt.of("?"), kind, reference="red ring", view=view) for kind in KINDS]
    return [
        ScoredProbe(probe, before, after)
        for probe in probes
        for before in answers
        for after in answers
    ]


def holds_range(metric: Metric) -> None:
    """Every score is None or between 0 and 1."""
    for row in rows():
        score = metric.score(row.before, row.after, row.probe)
        assert score is None or 0.0 <= score <= 1.0, (score, row)


def holds_keys(metric: Metric) -> None:
    """Keys of a case end in a scorer name and hold scores in range."""
    for key, score in metric.score_case(rows()):
        kind, _, scorer = key.rpartition(".")
        assert kind and scorer, key
        assert score is None or 0.0 <= score <= 1.0, (key, score)


def holds_same(metric: Metric) -> None:
    """The same rows give the same scores, in the same order."""
    assert list(metric.score_case(rows())) == list(metric.score_case(rows()))
