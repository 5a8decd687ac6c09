"""K edits live in one memory at once; all of their probes are asked at the end, and the panel.

What `sequential` asks of ten or twenty edits, of up to a thousand. The edits of a lane are made in
batches, each batch jointly and on top of the earlier ones, so an editor with a memory fills it, and
one without has a patch per batch. Nothing is asked in between. Two edits that state one fact never
share a memory. With one lane, intervals are over its cases: they hold for other edits in such a
memory, not for another memory.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

from errata.core.errors import BadSpec
from errata.core.measure.protocol import LaneStep, Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe
from errata.protocols._windows import closing_asks, number, size_argument, windows_of

LEAST, MOST = 10, 1000
BATCH = 50


class Memory(Protocol):
    """`memory:K` or `memory:KxB`: K from 10 to 1000 edits in batches of B, 100x50 by default."""

    name = "memory"
    cases_of_one_lane: ClassVar[bool] = True

    def __init__(self, argument: str = "") -> None:
        size, cross, batch = argument.partition("x")
        self.size = size_argument(self.name, size, 100)
        if not LEAST <= self.size <= MOST:
            raise BadSpec(
                f"protocol '{self.name}:{argument}': {self.size} is not from {LEAST} to {MOST}. "
                f"Write for example {self.name}:240; for fewer edits, sequential:{self.size}."
            )
        self.batch = size_argument(self.name, batch, BATCH) if cross else BATCH

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(windows_of(cases, self.size, seed, self.spec), 1)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        (lane,) = unit.lanes
        for start in range(0, self.size, self.batch):
            edits = tuple(c.edit for c in lane.cases[start : start + self.batch])
            last = start + self.batch >= self.size
            asked = closing_asks(lane, panel) if last else ()
            yield Step((LaneStep(edits, asked),), on="previous" if start else "clean")

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size}x{min(self.batch, self.size)}"
