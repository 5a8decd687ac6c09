"""Edit facts in text, then draw: do the pictures show the new facts?

K edits in batches of B, each batch on top of the earlier ones; after the last batch all probes of
all K cases. Pictures are drawn from the unchanged image prompts. This is the direct protocol of the
published benchmark (one sequence of its 2971 edits in batches of 100). Added here: pictures of the
unedited model, pictures of the unedited model with the fact stated in the prompt, and a score right
after the batch of each edit.
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
