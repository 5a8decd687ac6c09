"""What a metric is: a score from two answers to one probe. Offline, no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from errata.core.types import KINDS, Answer, Probe


@dataclass(frozen=True, slots=True)
class ScoredProbe:
    """One probe with what was said to it before and after."""

    probe: Probe
    before: Answer
    after: Answer


class Metric(ABC):
    """Scores in [0, 1], or None where there is nothing to score (unscored, never zero)."""

    plugin_kind: ClassVar[str] = "metrics"
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    #: the kinds that it scores; probes of other kinds get no score, not even an unscored one
    kinds: ClassVar[frozenset[str]] = frozenset(KINDS)

    @abstractmethod
    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        """The score of one probe."""

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        """(key, score) pairs of one case; a key is `<kind>[/<group>].<scorer>`."""
        for row in rows:
            if row.probe.kind not in self.kinds:
                continue
            group = f"/{row.probe.group}" if row.probe.group else ""
            yield (
                f"{row.probe.kind}{group}.{self.name}",
                self.score(row.before, row.after, row.probe),
            )
