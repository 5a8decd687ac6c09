"""Questions of one edit that lie in the scope of another edit of the same sequence.

A near question of one edit may ask what another edit of its sequence states: its answer should
change, and an editor must not be charged for that. Such questions are found from what the benchmark
declares (`Case.states`, `Probe.depends_on`), recorded in the plan with the questions that were left
out, and not scored. They are still asked. The questions that ask for an edit's own target are
always scored: edits that contradict each other do not come into one sequence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from errata.core.measure.protocol import Lane, Unit
from errata.core.types import Case, Probe, Skip

REASON = "lies in the scope of another edit of its sequence"


def in_other_scopes(units: Iterable[Unit]) -> tuple[Skip, ...]:
    """The questions that are not scored, as `<case>/<probe>`, each with the other edit."""
    return tuple(skip for unit in units for lane in unit.lanes for skip in _of_lane(lane))


def _of_lane(lane: Lane) -> Iterator[Skip]:
    stated: dict[str, list[str]] = defaultdict(list)
    for case in lane.cases:
        for fact in case.states:
            stated[fact].append(case.id)
    for case in lane.cases:
        for probe in case.probes:
            if _own(probe):
                continue
            others = (c for fact in probe.depends_on for c in stated[fact] if c != case.id)
            if other := next(others, None):
                yield Skip(f"{case.id}/{probe.id}", f"{REASON}, '{other}'")


def _own(probe: Probe) -> bool:
    """Whether the probe asks for the target of its own edit, and for nothing that follows."""
    return probe.kind_info.main or probe.kind_info.family == "generality"


def unscored_probes(cases: Mapping[str, Case], dropped: Iterable[Skip]) -> frozenset[str]:
    """The `<case>/<probe>` among what a plan left out that its cases still hold."""
    held = {f"{case.id}/{probe.id}" for case in cases.values() for probe in case.probes}
    return frozenset(skip.id for skip in dropped if skip.id in held)


def by_kind(cases: Mapping[str, Case], unscored: frozenset[str]) -> dict[str, int]:
    """Kind, or kind and group, -> how many questions are not scored."""
    counts = Counter(
        f"{probe.kind}/{probe.group}" if probe.group else probe.kind
        for case in cases.values()
        for probe in case.probes
        if f"{case.id}/{probe.id}" in unscored
    )
    return dict(sorted(counts.items()))
