"""Whether the target's first token is what the model would say first: the published efficacy.

The cross-modal benchmark calls an edit successful when the likeliest token behind the prompt is the
first one of the target. Of a target with several tokens that checks the first alone, so it is never
lower than what `exact` asks for on targets of one token, and says less on longer ones.
"""

from __future__ import annotations

from errata.core.metric import Metric
from errata.core.types import Answer, Probe


class FirstToken(Metric):
    """`first_token`, for efficacy. Unscored: answers without teacher forcing."""

    name = "first_token"
    kinds = frozenset({"efficacy"})

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        scored = after.reference
        if scored is None or not scored.ids:
            return None
        return float(scored.argmax[0] == scored.ids[0])
