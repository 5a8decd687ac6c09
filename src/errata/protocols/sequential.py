"""K edits one after another; all probes of all K cases are asked after the last.

UniKE Eq. 16-20: the scores that count are those after the K-th edit. The probes of each case are
also asked right after its own edit (tag `own`); the difference is what later edits made the model
forget. Windows are sampled with a seed. An image is edited at most once per window: consecutive
edits of one image are common in E-VQA and measure something else.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from errata.core.measure.protocol import Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe
from errata.protocols._windows import number, sequential_steps, size_argument, windows_of


class Sequential(Protocol):
    """`sequential:K`, 10 by default."""

    name = "sequential"

    def __init__(self, argument: str = "") -> None:
        self.size = size_argument(self.name, argument, 10)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(windows_of(cases, self.size, seed, self.spec), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        return sequential_steps(unit, panel)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.size}"
