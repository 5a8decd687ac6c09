"""Edit, let the model write a rationale, then draw from it.

As `direct`, but every picture of an edited fact is drawn from a rationale that the same model wrote
for the reasoning prompt of that stage. The published work uses the rationale in three ways: in the
paper it is prepended to the image prompt, in the image script it replaces the prompt, in the
analysis an instruction stands between the two.

    replace    the rationale (the image prompt where it is empty)
    prepend    rationale, image prompt
    instruct   rationale, "Based on the above, generate an image: ", image prompt

Without a rationale, or with an empty one, the picture is drawn from the image prompt alone.
Controls in addition to those of `direct`: the unedited model's rationale and the picture from it
(`pre`), and the picture from a rationale that states the target (`ceiling`), an upper bound for any
editor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.errors import BadSpec
from errata.core.measure.protocol import Ask, LaneStep, Protocol, Step, Unit
from errata.core.types import Answer, Case, Probe, StatedFact
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
    with_text,
)
from errata.protocols._windows import number, windows_of

VARIANTS = ("replace", "prepend", "instruct")


class Reasoning(Protocol):
    """`reasoning:VARIANT:KxB`, prepend and 50x10 by default; either part may be left out."""

    name = "reasoning"
    draws = True

    def __init__(self, argument: str = "") -> None:
        first, _, rest = argument.partition(":")
        if argument and first[:1].isdigit():
            first, rest = "prepend", argument
        self.variant = first or "prepend"
        if self.variant not in VARIANTS:
            raise BadSpec(
                f"protocol '{self.name}:{argument}': '{first}' is none of {', '.join(VARIANTS)}. "
                f"Write for example {self.name}:prepend:50x10."
            )
        self.edits, self.batch = sizes(self.name, rest)

    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        return number(windows_of(cases, self.edits, seed, self.spec), rows)

    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Steps:
        yield control(unit, stated("oracle", oracle))
        yield control(unit, other_images)
        yield control(unit, stated("ceiling", self._from_stated))
        answers = yield control(unit, tagged("pre", "reasoning"))
        yield control(unit, lambda case: self._drawn(case, _rationales(answers, "pre"), "pre"))
        answers = []
        for step in batches(unit, self.batch, closing(panel, "vqa")):
            answers = yield step
        rationales = _rationales(answers, "")
        yield Step(
            tuple(
                LaneStep(
                    (), tuple(a for case in lane.cases for a in self._drawn(case, rationales, ""))
                )
                for lane in unit.lanes
            ),
            on="previous",
        )

    def _drawn(self, case: Case, rationales: dict[tuple[str, str], str], tag: str) -> Iterator[Ask]:
        """Asks for the pictures of a case, each from the rationale of its stage."""
        by_stage = {
            p.group: rationales.get((case.id, p.id), "") for p in _of_kind(case, "reasoning")
        }
        for probe in _of_kind(case, "vqa"):
            yield Ask(case.id, self.composed(probe, by_stage.get(probe.group, "")), tag)

    def _from_stated(self, probe: Probe, aids: StatedFact) -> Probe:
        return self.composed(probe, aids.rationale)

    def composed(self, probe: Probe, rationale: str) -> Probe:
        """The probe with a prompt that holds the rationale; unchanged if that is empty."""
        if not rationale:
            return probe
        aids = probe.aids or StatedFact(probe.prompt, "")
        prompt = probe.prompt.text
        text = {
            "replace": rationale,
            "prepend": f"{rationale}{aids.glue}{prompt}",
            "instruct": f"{rationale}{aids.glue}{aids.instruct}{prompt}",
        }[self.variant]
        return with_text(probe, text)

    @property
    def spec(self) -> str:
        return f"{self.name}:{self.variant}:{self.edits}x{self.batch}"


def _of_kind(case: Case, kind: str) -> list[Probe]:
    return [p for p in case.probes if p.kind == kind]


def _rationales(answers: Sequence[Answer], tag: str) -> dict[tuple[str, str], str]:
    """(case, probe) -> rationale, stripped."""
    return {(a.case, a.probe): a.text.strip() for a in answers if a.tag == tag}
