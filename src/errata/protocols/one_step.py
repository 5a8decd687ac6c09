"""Every edit alone on the unedited model, then all of its probes.

The papers' single editing (UniKE Eq. 11-15, DualEdit Eq. 1-3). Each case is one lane, in the
planned order. The retention panel is not asked: it would cost more than the probes of the case.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from errata.core.measure.protocol import LaneStep, Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe
from errata.protocols._windows import asks, no_argument, number


class OneStep(Protocol):
    """`one_step`."""

    name = "one_step"

    def __init__(self, argument: str = "") -> None:
        no_argument(self.name, argument)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(((case,) for case in cases), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        cases = [lane.cases[0] for lane in unit.lanes]
        yield Step(tuple(LaneStep((case.edit,), asks(case)) for case in cases), on="clean")

    @property
    def spec(self) -> str:
        return self.name
