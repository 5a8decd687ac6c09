"""Edit, then draw: does a fact that was changed in text reach the picture by itself?

K edits in batches of B, each batch on top of the earlier ones, and after the last all probes of all
K; pictures are drawn from the image prompts as they are. The published benchmark's direct protocol
(one sequence of its 2971 edits in batches of 100), with what it lacks: pictures of the untouched
model, of the untouched model with the fact stated in the prompt, and a score right after the own
batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from errata.core.measure.protocol import Protocol, Unit
from errata.core.types import Case, Probe
from errata.protocols._drawn import (
    Steps,
    batches,
    closing,
    control,
    oracle,
    other_images,
    sizes,
    stated,
    tagged,
)
from errata.protocols._windows import number, windows_of


class Direct(Protocol):
    """`direct:KxB`, 50x10 by default."""

    name = "direct"
    draws = True

    def __init__(self, argument: str = "") -> None:
        self.edits, self.batch = sizes(self.name, argument)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(windows_of(cases, self.edits, seed, self.spec), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Steps:
        yield control(unit, stated("oracle", oracle))
        yield control(unit, other_images)
        yield control(unit, tagged("pre", "vqa"))
        yield from batches(unit, self.batch, closing(panel))

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.edits}x{self.batch}"
