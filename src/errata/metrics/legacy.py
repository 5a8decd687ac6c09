"""EasyEdit's scores, for comparison with old tables only.

As in EasyEdit's MultimodalTrainer and MultimodalEditor: reliability and generality are
teacher-forced token accuracy; T-locality is top-1 equality over all positions of prompt and gold
answer; M-locality compares the ten likeliest ids rank by rank over all positions, image tokens
included. When the edited prompt is longer (in-context editing) both are aligned at the right end.
Kinds that EasyEdit does not have get no score.
"""

from __future__ import annotations

from errata.core.kinds import ProbeKind, family
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe
from errata.metrics._rules import token_accuracy

TARGETS = family("edit", "generality")
TOP_K = {"t_locality": 1, "m_locality": 10}


class Legacy(Metric):
    """`legacy`. Unscored: locality answers without `top`, which is recorded on request only."""

    name = "legacy"
    reads_top = True
    heading = "EasyEdit"
    meaning = (
        "EasyEdit's scores, for comparison with published tables only: teacher-forced token "
        "accuracy, and equality of the most likely tokens at all positions for locality."
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.family in ("edit", "generality", "far_locality")

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind in TARGETS:
            return token_accuracy(after.reference)
        if probe.kind not in TOP_K or not before.top or not after.top:
            return None
        k = TOP_K[probe.kind]
        length = min(len(before.top), len(after.top))
        pairs = [
            a == b
            for old, new in zip(before.top[-length:], after.top[-length:], strict=True)
            for a, b in zip(old[:k], new[:k], strict=True)
        ]
        return sum(pairs) / len(pairs)
