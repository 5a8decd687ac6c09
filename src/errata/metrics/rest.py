"""What else a generated image shows: the attributes that were not edited should stay.

An edit can reach the picture and draw another thing on the way there: the target is shown, and the
rest of the thing is not. `rest` compares every attribute that the judge read and that the question
did not ask for with the picture of the same seed from the unedited model. Attributes that are read
in only one of the two pictures are left out; without any, and of judges that read nothing but the
answer, the probe is unscored.
"""

from __future__ import annotations

from errata.core.kinds import ProbeKind
from errata.core.measure.metric import Metric
from errata.core.types import Answer, Probe, Verdict


class Rest(Metric):
    """`rest`, the mean over images. Unscored: probes without two attributes to compare."""

    name = "rest"
    heading = "Rest of the picture"
    meaning = (
        "The share of the attributes that were not edited which generated images still show as the "
        "images of the same seeds did before the edit, as far as a judge reads them."
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.drawn and kind.side == "target"

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        pairs = zip(before.verdicts, after.verdicts, strict=False)
        shares = [s for a, b in pairs if (s := _same(a, b)) is not None]
        return sum(shares) / len(shares) if shares else None


def _same(before: Verdict, after: Verdict) -> float | None:
    """The share of the attributes read in both pictures that are equal."""
    old, new = dict(before.shown), dict(after.shown)
    both = [a for a in old if a in new]
    return sum(old[a] == new[a] for a in both) / len(both) if both else None
