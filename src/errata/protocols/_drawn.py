"""Shared by the protocols that draw: controls, then K edits in batches of B, then all probes.

Controls come before any edit: pictures of the unedited model (tag `pre`), and of the unedited model
with the fact stated in the prompt (`oracle`) or in a rationale (`ceiling`). They do not depend on
the editor, so that the runner can take them from its cache. For this reason each kind of control is
a separate step, with the same asks in every protocol.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from errata.core.errors import BadSpec
from errata.core.measure.protocol import Ask, Lane, LaneStep, Step, Unit
from errata.core.types import Answer, Case, Probe, Prompt, StatedFact
from errata.protocols._windows import closing_asks

EDITS, BATCH = 50, 10
_SIZES = re.compile(r"(?P<edits>[1-9][0-9]{0,8})x(?P<batch>[1-9][0-9]{0,8})")

Steps = Generator[Step, list[Answer], None]
#: (probe, prompt and rationale that state its fact) -> the same probe with another prompt
Restate = Callable[[Probe, StatedFact], Probe]


def sizes(name: str, argument: str) -> tuple[int, int]:
    """K and B of `KxB`, 50 and 10 by default. Raises BadSpec."""
    if not argument:
        return EDITS, BATCH
    match = _SIZES.fullmatch(argument)
    edits, batch = (int(match["edits"]), int(match["batch"])) if match else (0, 1)
    if edits < batch:
        raise BadSpec(
            f"protocol '{name}': cannot read '{argument}'. Write for example {EDITS}x{BATCH}: "
            f"sequences of {EDITS} edits, made {BATCH} at a time."
        )
    return edits, batch


def control(unit: Unit, asks: Callable[[Case], Iterator[Ask]]) -> Step:
    """A step that asks the unedited model about every case."""
    return Step(
        tuple(
            LaneStep((), tuple(a for case in lane.cases for a in asks(case))) for lane in unit.lanes
        ),
        on="clean",
    )


def tagged(tag: str, *kinds: str) -> Callable[[Case], Iterator[Ask]]:
    """Asks the probes of some kinds, unchanged."""
    return lambda case: (Ask(case.id, p, tag) for p in case.probes if p.kind in kinds)


def other_images(case: Case) -> Iterator[Ask]:
    """The probes that ask for an image, but for `vqa`, which depends on the protocol."""
    return (Ask(case.id, p, "pre") for p in case.probes if p.kind_info.drawn and p.kind != "vqa")


def stated(tag: str, restate: Restate) -> Callable[[Case], Iterator[Ask]]:
    """Asks for the pictures of the edited fact with another prompt, if the case has one."""
    return lambda case: (
        Ask(case.id, restate(p, p.aids), tag)
        for p in case.probes
        if p.kind == "vqa" and p.aids is not None
    )


def oracle(probe: Probe, aids: StatedFact) -> Probe:
    return replace(probe, prompt=aids.oracle)


def with_text(probe: Probe, text: str) -> Probe:
    return replace(probe, prompt=Prompt.of(text))


def batches(unit: Unit, batch: int, closing: Callable[[Lane], tuple[Ask, ...]]) -> Iterator[Step]:
    """The edits, each batch on top of the earlier ones. Its efficacy is asked at once (tag `own`).

    After the last batch the closing questions are asked too.
    """
    (length,) = {len(lane.cases) for lane in unit.lanes}
    for start in range(0, length, batch):
        lanes = []
        for lane in unit.lanes:
            cases = lane.cases[start : start + batch]
            asks = tuple(
                Ask(case.id, p, "own") for case in cases for p in case.probes if p.kind_info.main
            )
            last = start + batch >= length
            lanes.append(
                LaneStep(tuple(c.edit for c in cases), asks + (closing(lane) if last else ()))
            )
        yield Step(tuple(lanes), on="previous")


def closing(panel: Sequence[Probe], *without: str) -> Callable[[Lane], tuple[Ask, ...]]:
    """All probes of a lane's cases except those of some kinds, then the panel."""
    return lambda lane: tuple(a for a in closing_asks(lane, panel) if a.probe.kind not in without)
