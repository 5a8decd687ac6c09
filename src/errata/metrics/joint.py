"""Per edit: reliable AND general AND local, all of it, by the rule of `exact`.

A case scores 1 when every probe of these kinds scores 1: reliability; t_generality, m_generality;
t_locality, m_locality, near_locality (all groups). Portability is left out: what follows from a
fact is more than the fact. A case needs at least one probe of each of the three families. One wrong
probe makes the case 0; otherwise one unscored probe leaves it unscored. The key is `joint.exact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.metric import Metric, ScoredProbe
from errata.core.types import Answer, Probe
from errata.metrics._rules import exact_match, unchanged

RELIABLE = frozenset({"reliability"})
GENERAL = frozenset({"t_generality", "m_generality"})
LOCAL = frozenset({"t_locality", "m_locality", "near_locality"})


class Joint(Metric):
    """`joint`. Unscored: cases without one of the three families."""

    name = "joint"
    kinds = RELIABLE | GENERAL | LOCAL

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind in LOCAL:
            return unchanged(before, after)
        return exact_match(after, probe)

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        if not any(row.probe.kind in RELIABLE for row in rows):
            return
        families = [[r for r in rows if r.probe.kind in f] for f in (RELIABLE, GENERAL, LOCAL)]
        if not all(families):
            yield "joint.exact", None
            return
        scores = [self.score(r.before, r.after, r.probe) for family in families for r in family]
        if 0.0 in scores:
            yield "joint.exact", 0.0
        else:
            yield "joint.exact", None if None in scores else 1.0
