"""K edits made jointly as one patch, then all probes of all K cases and the panel.

A lane is one joint edit. Its cases are sampled as for `sequential` (seeded, no image twice), so
that `batch:10` and `sequential:10` edit the same sets of cases with one seed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from errata.core.measure.protocol import LaneStep, Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe
from errata.protocols._windows import closing_asks, number, size_argument, windows_of


class BatchEdits(Protocol):
    """`batch:K`, 16 by default."""

    name = "batch"

    def __init__(self, argument: str = "") -> None:
        self.size = size_argument(self.name, argument, 16)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(windows_of(cases, self.size, seed, self.spec), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        yield Step(
            tuple(
                LaneStep(tuple(case.edit for case in lane.cases), closing_asks(lane, panel))
                for lane in unit.lanes
            ),
            on="clean",
        )

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size}"
