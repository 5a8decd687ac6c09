"""Per edit: reliable and general and local in every probe, by the rule of `exact`.

A case scores 1 when every probe of the kinds with a family (see `core.kinds`) scores 1: the edit,
generality, and far and near locality, in all groups. Portability is left out: what follows from a
fact is more than the fact. A case needs a probe of the edit, one of generality and one of locality.
One wrong probe makes the case 0; otherwise one unscored probe leaves it unscored. The key is
`joint.exact`, a column of the scorer `exact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.kinds import JOINT, ProbeKind, family
from errata.core.measure.metric import Metric, ScoredProbe
from errata.core.types import Answer, Probe
from errata.metrics._rules import exact_match, unchanged

EDIT, GENERAL = family("edit"), family("generality")
LOCAL = family("far_locality", "near_locality")


class Joint(Metric):
    """`joint`. Unscored: cases without one of the three families."""

    name = "joint"
    heading = JOINT.heading
    meaning = JOINT.meaning

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.family != ""

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind_info.keeps_answer:
            return unchanged(before, after)
        return exact_match(after, probe)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        parts = [[r for r in rows if r.probe.kind in kinds] for kinds in (EDIT, GENERAL, LOCAL)]
        if not parts[0]:
            return
        if not all(parts):
            yield "joint.exact", None
            return
        scores = [self.score(r.before, r.after, r.probe) for part in parts for r in part]
        if 0.0 in scores:
            yield "joint.exact", 0.0
        else:
            yield "joint.exact", None if None in scores else 1.0
