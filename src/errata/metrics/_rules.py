"""Rules that several metrics share. Each is a function of one probe's answers."""

from __future__ import annotations

from errata.core.errors import BadRun
from errata.core.measure.metric import answered
from errata.core.text import normalise
from errata.core.types import Answer, Probe, Scored


def exact_match(after: Answer, probe: Probe) -> float | None:
    """1 where the generated answer is the reference, see `answered`."""
    if not normalise(probe.reference):
        return None
    return float(answered(after, probe.reference))


def unchanged(before: Answer, after: Answer) -> float | None:
    """1 where the same ids were generated and generation ended the same way.

    None where the unedited model said nothing: there is no answer to keep.
    """
    if not before.text.strip():
        return None
    return float(before.ids == after.ids and before.stopped == after.stopped)


def token_accuracy(scored: Scored | None) -> float | None:
    """The fraction of a teacher-forced continuation's ids that are the argmax at their position."""
    if scored is None or not scored.ids:
        return None
    return sum(a == b for a, b in zip(scored.argmax, scored.ids, strict=True)) / len(scored.ids)


def argmax_agreement(before: Scored | None, after: Scored | None, where: str) -> float | None:
    """The fraction of positions of a teacher-forced continuation with the same argmax twice."""
    if before is None or after is None or not before.ids:
        return None
    if before.ids != after.ids:
        raise BadRun(
            f"{where}: before and after were scored on different token ids, so they cannot be "
            "compared. Repeat the run."
        )
    same = sum(a == b for a, b in zip(before.argmax, after.argmax, strict=True))
    return same / len(before.ids)
