"""Whether the greedy answer begins with the target, whatever follows.

For completions: "... is in the city of" is continued by "Paris, France.", which is no whole answer
to `exact`. The answer begins with the target where each of the target's tokens is the likeliest.
"""

from __future__ import annotations

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe


class Begins(Metric):
    """`begins`, for kinds whose answer should be the target."""

    name = "begins"
    heading = "Begins"
    meaning = "The greedy answer begins with the target, whatever follows."

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.expects_target

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        scored = after.reference
        if scored is None or not scored.ids:
            return None
        return float(scored.argmax == scored.ids)
