"""As `sequential`, with half `vqa` and half `caption` edits per window, in random order.

UniKE's cross-task editing (5 and 5 of 10). Cases of other tasks, and cases that fill no complete
window, are left out.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence

from errata.core.measure.protocol import Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe
from errata.protocols._windows import (
    Window,
    complete,
    deal,
    most_full,
    most_windows,
    number,
    sequential_steps,
    size_argument,
)

TASKS = ("vqa", "caption")


class CrossTask(Protocol):
    """`cross_task:K`, K even, 10 by default."""

    name = "cross_task"

    def __init__(self, argument: str = "") -> None:
        self.size = size_argument(self.name, argument, 10, even=True)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        half = self.size // 2
        by_task = {task: [c for c in cases if c.task == task] for task in TASKS}

        def dealt(count: int) -> tuple[list[Window], random.Random]:
            rng = random.Random(seed)
            windows: list[Window] = [[] for _ in range(count)]
            for of_task in by_task.values():
                deal(of_task, windows, half, rng)
            return windows, rng

        most = min(most_windows(of_task, half) for of_task in by_task.values())
        windows, rng = most_full(most, self.size, dealt)
        have = "there are " + " and ".join(f"{len(by_task[t])} of task {t}" for t in TASKS)
        return number(complete(windows, self.size, rng, self.spec, have), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        return sequential_steps(unit, panel)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size}"
