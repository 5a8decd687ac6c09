"""Questions to begin with: from the benchmark that a bundled model was made for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from errata.core import registry
from errata.core.errors import UserError
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.text import normalise, same_answer
from errata.core.types import Case, Image, Probe, Prompt
from errata.evaluation.answers import ask_prompts

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

MOST = 8  # examples that are shown
LOOKED_AT = 400  # cases that they are taken from
OF_EACH = 3  # cases about one thing that are asked, until the model is right in one
CAP = 16  # tokens of an answer
NEAR, UNRELATED = 4, 3  # questions of an example


@dataclass(frozen=True)
class Example:
    """A fact that the model knows, and another answer to give it.

    near, unrelated: questions that should keep their answer. drawing: what to draw to see the fact
    in a picture, and oracle: the same with the new fact stated; "" for models that do not draw.
    """

    prompt: Prompt
    target: str
    rephrase: str
    near: tuple[Prompt, ...] = ()
    unrelated: tuple[Prompt, ...] = ()
    drawing: str = ""
    oracle: str = ""

    @property
    def picture(self) -> Image | None:
        return next(iter(self.prompt.images), None)

    @property
    def question(self) -> str:
        return self.prompt.text.strip()


def examples_of(bb: Backbone, most: int = MOST) -> tuple[Example, ...]:
    """Examples whose present answer is right; none for a model without a benchmark of its own."""
    benchmark = bb.bundled.get(bb.name)
    if not benchmark:
        return ()
    found = _varied(c for c in _cases(BenchmarkSpec.parse(benchmark)) if c.edit.old is not None)
    answers = ask_prompts(bb, [c.edit.prompt for c in found], cap=CAP) if found else []
    chosen: dict[str, Case] = {}
    for case, answer in zip(found, answers, strict=True):
        if _right(answer.text, str(case.edit.old)):
            chosen.setdefault(case.asked or case.id, case)
    return tuple(_example(c) for c in list(chosen.values())[:most])


def _cases(spec: BenchmarkSpec) -> list[Case]:
    """Of the tasks in turn, until there are enough."""
    benchmark = registry.load("benchmarks", spec.name)()
    cases: list[Case] = []
    for task in spec.tasks or benchmark.default_tasks or benchmark.tasks:
        try:
            cases += benchmark.load(replace(spec, tasks=(task,))).cases
        except UserError:
            continue  # its data are not on this machine
        if len(cases) >= LOOKED_AT:
            break
    return cases[:LOOKED_AT]


def _varied(cases: Iterable[Case]) -> list[Case]:
    """A few cases for each thing that is asked, first those that are asked as a question."""
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: not _asks(c)):
        groups.setdefault(case.asked or case.id, []).append(case)
    return [c for group in groups.values() for c in group[:OF_EACH]][: OF_EACH * MOST]


def _right(answer: str, fact: str) -> bool:
    """Also where the model goes on after the fact, as language models do."""
    return same_answer(answer, fact) or normalise(answer).startswith(f"{normalise(fact)} ")


def _asks(case: Case) -> bool:
    """Whether it is worded as a question of everyday language."""
    text = case.edit.prompt.text.strip()
    return text.endswith("?") and text[0].isupper() and ":" not in text


def _example(case: Case) -> Example:
    edit = case.edit
    texts = [p.prompt for p in case.probes if _follows(p, edit.prompt)]
    drawn = next((p for p in case.probes if p.kind_info.drawn and p.aids is not None), None)
    return Example(
        edit.prompt,
        edit.target,
        next((p.text.strip() for p in texts), ""),
        _kept(case.probes, "near_locality", NEAR),
        _kept(case.probes, "far_locality", UNRELATED),
        "" if drawn is None else drawn.prompt.text,
        "" if drawn is None or drawn.aids is None else drawn.aids.oracle.text,
    )


def _follows(probe: Probe, edited: Prompt) -> bool:
    """Whether it asks the edited question in other words."""
    kind = probe.kind_info
    same = probe.prompt.images == edited.images and probe.prompt != edited
    return same and kind.expects_target and (kind.main or kind.family == "generality")


def _kept(probes: Sequence[Probe], family: str, most: int) -> tuple[Prompt, ...]:
    """Questions that should keep their answer, of each group one, then more."""
    of_family = [p for p in probes if p.kind_info.family == family]
    firsts = {(p.kind, p.group): p for p in reversed(of_family)}
    order = [*reversed(firsts.values()), *of_family]
    return tuple(dict.fromkeys(p.prompt for p in order))[:most]
