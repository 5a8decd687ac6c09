"""What a metric is: a score from two answers to one probe. Offline, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from errata.core.kinds import ProbeKind
from errata.core.text import normalise, same_answer
from errata.core.types import Answer, Probe


@dataclass(frozen=True, slots=True)
class ScoredProbe:
    """One probe with the answers before and after the edit."""

    probe: Probe
    before: Answer
    after: Answer


@dataclass(frozen=True, slots=True)
class Scorer:
    """One family of scores that a metric gives, as reports show it: one table per scorer.

    `meaning` is one or two sentences; `means`: whether the means over kinds are taken of it.
    """

    name: str
    heading: str = ""
    meaning: str = ""
    means: bool = False

    @property
    def title(self) -> str:
        return self.heading or self.name.replace("_", " ")


def answered(answer: Answer, reference: str) -> bool:
    """Whether an answer is the reference; an answer that hit its cap is not.

    The tokens of the reference are the reference too where a tokenizer spaces it in another way.
    """
    if not answer.stopped:
        return False
    if same_answer(answer.text, reference):
        return True
    forced = answer.reference
    return bool(forced and forced.ids == answer.ids and spelled(answer.text, reference))


def spelled(text: str, reference: str) -> bool:
    """Whether two texts are the same but for their spaces."""
    a, b = ("".join(normalise(t).split()) for t in (text, reference))
    return a == b != ""


class Metric(ABC):
    """Scores in [0, 1], or None where there is nothing to score (unscored, never zero).

    `heading`, `meaning` and `means` describe the scorer of the metric's own name (see `Scorer`). A
    metric whose `score_case` gives further scorers lists them in `more_scorers`.
    """

    plugin_kind: ClassVar[str] = "metrics"
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    heading: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    means: ClassVar[bool] = False
    more_scorers: ClassVar[tuple[Scorer, ...]] = ()
    reads_top: ClassVar[bool] = False
    """Reads `Answer.top`, the likeliest tokens at every position: a run records them for it."""
    forced: ClassVar[bool] = False
    """Reads scores under teacher forcing alone, so that it scores runs that generate nothing."""
    reads_contrast: ClassVar[bool] = False
    """Compares with the answer that a probe names as `contrast`."""
    kinds: ClassVar[frozenset[str]] = frozenset()
    """The kinds that it scores; empty: all. Override `applies` for a rule instead of names."""

    @abstractmethod
    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        """The score of one probe."""

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        """Whether it scores probes of `kind`; others get no score, not even an unscored one."""
        return not cls.kinds or kind.name in cls.kinds

    @classmethod
    def scorers(cls) -> tuple[Scorer, ...]:
        """Its scorers; the first has the name of the metric."""
        return (Scorer(cls.name, cls.heading, cls.meaning, cls.means), *cls.more_scorers)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        """(key, score) pairs of one case; a key is `<kind>[/<group>].<scorer>`."""
        for row in rows:
            if self.applies(row.probe.kind_info):
                score = self.score(row.before, row.after, row.probe)
                yield f"{kind_key(row.probe)}.{self.name}", score


def kind_key(probe: Probe) -> str:
    """`<kind>[/<group>]`, the beginning of the key of a score."""
    return f"{probe.kind}/{probe.group}" if probe.group else probe.kind
