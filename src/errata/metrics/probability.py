"""Which of two answers is likelier: efficacy, paraphrase and neighbourhood scores of the papers.

ROME and MEMIT compare the new answer of an edit with the true one, each by the mean
log-probability of its tokens under teacher forcing. Where the answer should change the new one
should be the likelier, on the neighbours of the edited subject the true one. A model can prefer
the target to one other answer and still say neither: read `exact` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric, ScoredProbe, Scorer, kind_key
from errata.core.types import Answer, Probe, Scored


class Probability(Metric):
    """`probability`, with `p_reference` and `p_contrast`, for probes that name a contrast."""

    name = "probability"
    forced = True
    heading = "Probability"
    meaning = (
        "The wanted answer is likelier than the competing one, per token: the new answer where it "
        "should change, the true one where it should stay. The scores of ROME and MEMIT."
    )
    means = True
    reads_contrast = True
    more_scorers = (
        Scorer(
            "p_reference",
            "P(wanted)",
            "The probability of the wanted answer: the geometric mean over its tokens.",
        ),
        Scorer(
            "p_contrast",
            "P(competing)",
            "The probability of the competing answer: the geometric mean over its tokens. The "
            "papers' magnitude is P(wanted) less P(competing).",
        ),
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.output == "answer"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        wanted, other = per_token(after.reference), per_token(after.contrast)
        if wanted is None or other is None:
            return None
        return float(wanted > other)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case([row for row in rows if row.probe.contrast])
        for row in rows:
            if row.probe.contrast and self.applies(row.probe.kind_info):
                for name, scored in (
                    ("p_reference", row.after.reference),
                    ("p_contrast", row.after.contrast),
                ):
                    mean = per_token(scored)
                    yield f"{kind_key(row.probe)}.{name}", None if mean is None else math.exp(mean)


def per_token(scored: Scored | None) -> float | None:
    """The mean log-probability of the tokens; None where nothing was scored."""
    if scored is None or not scored.logprobs:
        return None
    return sum(scored.logprobs) / len(scored.logprobs)
