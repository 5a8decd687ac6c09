"""The papers' indicator: the whole generated answer is right, or unchanged (primary).

Target kinds: a reader takes the greedy answer for the target (`core.text.same_answer`); an answer
that did not stop by itself is wrong. Locality kinds: the generated ids, and whether generation
stopped, are what they were before the edit; unscored where there was no answer before it. UniKE
Eq. 11-15, DualEdit Eq. 1-3.
"""

from __future__ import annotations

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe
from errata.metrics._rules import exact_match, unchanged


class Exact(Metric):
    """`exact`. Unscored: an empty reference, or no answer before the edit that could be kept."""

    name = "exact"
    heading = "Exact"
    meaning = (
        "The whole greedy answer is the target, or, where nothing should change, is the answer "
        "given before the edit, token for token. An answer that does not end by itself is wrong."
    )
    means = True

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.output == "answer"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind_info.expects_target:
            return exact_match(after, probe)
        return unchanged(before, after) if probe.kind_info.keeps_answer else None
