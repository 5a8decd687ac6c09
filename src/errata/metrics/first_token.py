"""Whether the target's first token is the model's argmax: the published efficacy.

The cross-modal benchmark calls an edit successful when the most likely token after the prompt is
the first token of the target. Only that token is checked: on targets of one token the score is
never lower than `exact`, on longer ones it says less.
"""

from __future__ import annotations

from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe


class FirstToken(Metric):
    """`first_token`, for efficacy. Unscored: answers without teacher forcing."""

    name = "first_token"
    forced = True
    heading = "First token"
    meaning = "The target's first token is the most likely token after the prompt."
    kinds = frozenset({"efficacy"})

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        scored = after.reference
        if scored is None or not scored.ids:
            return None
        return float(scored.argmax[0] == scored.ids[0])
