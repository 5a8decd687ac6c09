"""Every condition under which a case is drawn, and what is measured on the drawings.

Shapes: B prompts, T columns, S seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from errata.analyses.drift.distances import (
    FourWay,
    Place,
    StageShift,
    four_way,
    mean_states,
    prompt_distances,
    shifts_between,
)
from errata.analyses.drift.random_control import random_control
from errata.analyses.drift.trace import DrawingTrace, StateSwap, trace_drawing
from errata.core import registry
from errata.core.analysis import Subject
from errata.core.errors import BadEdit
from errata.core.hooks.hook import Hook
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.generation import image_generator
from errata.core.patch import Patch
from errata.core.text import mentions
from errata.core.types import Case, JudgeQuestion, Probe, Prompt, Verdict
from errata.patches.rows import Rows
from errata.training.optimise import generator

#: condition -> (drawing, the drawing that it is compared with, whether the prompts are the same)
COMPARED = {
    "twin": ("twin", "fresh", True),
    "edit": ("edit", "fresh", True),
    "random": ("random", "fresh", True),
    "oracle": ("oracle", "fresh", False),
    "subject tokens only": ("subject", "fresh", True),
    "other tokens only": ("others", "fresh", True),
    "all tokens": ("all", "fresh", True),
    "rationale, unedited": ("rationale", "fresh", False),
    "edit after rationale": ("both", "rationale", True),
}
#: the drawings of `FourWay`
FOUR = ("fresh", "edit", "rationale", "both")


@dataclass(frozen=True)
class DrawnCase:
    """One case with the probes that are drawn."""

    case: Case
    probe: Probe
    reasoning: Probe | None

    @property
    def subject(self) -> str:
        return self.case.edit.subject or ""

    @property
    def oracle(self) -> Prompt:
        assert self.probe.aids is not None
        return self.probe.aids.oracle


@dataclass
class DriftRecords:
    """All measurements, per case.

    shifts: (condition, place) -> case -> shift. spreads: place -> distances between prompts.
    verdicts: drawing -> case -> one per seed. four_way: stage -> case -> changes. stated: whether
    the edited model's rationale states the target. cut: cases that are not drawn after a rationale,
    since with theirs, or that of a case beside them, the model draws no subject. swap_error:
    largest pixel difference between the drawing with edited text states and that of the edited
    model; 0 if the edit acts through these states alone.
    """

    shifts: dict[tuple[str, Place], dict[str, StageShift]] = field(default_factory=dict)
    spreads: dict[Place, list[float]] = field(default_factory=dict)
    verdicts: dict[str, dict[str, list[Verdict]]] = field(default_factory=dict)
    four_way: dict[str, dict[str, FourWay]] = field(default_factory=dict)
    stated: dict[str, bool] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    moments: tuple[float, ...] = ()
    stages: tuple[str, ...] = ()
    swap_error: float = 0.0


class DrawnBatch:
    """Cases that are drawn together.

    keep: the recorded steps. one_each: patches[i] is that of items[i]; otherwise all patches are
    applied to all cases. variant: how a rationale precedes the prompt.
    """

    def __init__(
        self,
        subject: Subject,
        items: Sequence[DrawnCase],
        keep: Sequence[int],
        patches: Sequence[Patch],
        *,
        one_each: bool,
        seeds: int,
        variant: str,
    ) -> None:
        self.subject, self.bb = subject, image_generator(subject.backbone)
        self.items, self.keep, self.seeds, self.variant = items, keep, seeds, variant
        self.edit = [Rows(patches)] if one_each else list(patches)
        rng = generator(subject.seed, f"drift/{items[0].case.id}")
        controls = [c for p in patches if (c := random_control(p, rng)) is not None]
        self.random: list[Patch] | None = None
        if len(controls) == len(patches):
            self.random = [Rows(controls)] if one_each else controls
        #: drawing -> (trace, columns of the subject)
        self.traces: dict[str, tuple[DrawingTrace, Tensor]] = {}

    def run(self, records: DriftRecords) -> None:
        prompts = [i.probe.prompt for i in self.items]
        self._draw("fresh", prompts)
        self._draw("twin", prompts)
        self._draw("edit", prompts, *self.edit)
        if self.random is not None:
            self._draw("random", prompts, *self.random)
        self._draw("oracle", [i.oracle for i in self.items])
        self._swap(prompts)
        self._reason(records)
        self._compare(records)
        self._judge(records)

    def _draw(self, name: str, prompts: Sequence[Prompt], *hooks: Hook) -> None:
        subjects = [i.subject for i in self.items]
        self.traces[name] = trace_drawing(
            self.bb, prompts, subjects, range(self.seeds), self.keep, *hooks
        )

    def _swap(self, prompts: Sequence[Prompt]) -> None:
        """Unedited drawings with edited text states."""
        tap = next(s for s in self.bb.path() if s.name == "tap")
        edited, subject = self.traces["edit"]
        columns = {"subject": subject, "others": edited.mask & ~subject, "all": edited.mask}
        for name, where in columns.items():
            self._draw(name, prompts, StateSwap(tap.site, edited.text["tap"], where))

    def _reason(self, records: DriftRecords) -> None:
        """Drawings after the edited model's rationale, by the unedited and by the edited model."""
        probes = [i.reasoning for i in self.items if i.reasoning is not None]
        if len(probes) < len(self.items):
            return
        with torch.no_grad(), self.bb.applied(*self.edit):
            batch = self.bb.encode([p.prompt for p in probes])
            rationales = self.bb.generate(batch, [max(1, p.cap) for p in probes])
        texts = [self.bb.decode(r.ids).strip() for r in rationales]
        compose = rationale_prompt(self.variant)
        prompts = [compose(i.probe, t) for i, t in zip(self.items, texts, strict=True)]
        for item, text in zip(self.items, texts, strict=True):
            records.stated[item.case.id] = mentions(text, item.case.edit.target)
        try:
            self.bb.conditioning_columns(prompts, [i.subject for i in self.items])
        except BadEdit:  # cut off behind a long rationale, or not named by one that stands alone
            records.cut += [i.case.id for i in self.items]
            return
        self._draw("rationale", prompts)
        self._draw("both", prompts, *self.edit)

    def _compare(self, records: DriftRecords) -> None:
        fresh = self.traces["fresh"]
        records.moments, records.stages = fresh[0].moments, (*fresh[0].text, *fresh[0].steps)
        for place, distances in prompt_distances(*fresh):
            records.spreads.setdefault(place, []).extend(distances)
        ids = [i.case.id for i in self.items]
        for condition, (name, base, aligned) in COMPARED.items():
            if name not in self.traces or base not in self.traces:
                continue
            oracle = self.traces["oracle"] if base == "fresh" else None
            shifts = shifts_between(*self.traces[base], *self.traces[name], oracle, aligned=aligned)
            for place, by_prompt in shifts.items():
                by_case = records.shifts.setdefault((condition, place), {})
                by_case.update(zip(ids, by_prompt, strict=True))
        if "both" in self.traces:
            for stage in fresh[0].text:
                means = (mean_states(self.traces[name][0], stage) for name in FOUR)
                changes = records.four_way.setdefault(stage, {})
                changes.update(zip(ids, four_way(*means), strict=True))
        swapped, edited = self.traces["all"][0].pixels, self.traces["edit"][0].pixels
        records.swap_error = max(records.swap_error, float((swapped - edited).abs().max()))

    def _judge(self, records: DriftRecords) -> None:
        judge = judge_of(self.subject.benchmark)
        if judge is None:
            return
        for name, (trace, _) in self.traces.items():
            views = [i.probe.view for i in self.items]
            rows = zip(trace.pictures, views, strict=True)
            verdicts = judge([(p, v) for row, v in rows if v is not None for p in row])
            for b, item in enumerate(self.items):
                of_case = verdicts[b * self.seeds : (b + 1) * self.seeds]
                records.verdicts.setdefault(name, {})[item.case.id] = of_case


def rationale_prompt(variant: str) -> Callable[[Probe, str], Prompt]:
    """How the protocol `reasoning` puts a rationale before an image prompt. Raises BadSpec."""
    protocol: Any = registry.load("protocols", "reasoning")(variant)
    return lambda probe, text: protocol.composed(probe, text).prompt


def judge_of(
    benchmark: str,
) -> Callable[[Sequence[tuple[Any, JudgeQuestion]]], list[Verdict]] | None:
    """The benchmark's own judge, for pictures in memory; None where it has none."""
    spec = BenchmarkSpec.parse(benchmark)
    instance = registry.load("benchmarks", spec.name)()
    names = {instance.judge(task) for task in spec.tasks}
    if len(names) != 1 or not (name := names.pop()):
        return None
    judge = registry.load("judges", name)()

    def read(pictures: Sequence[tuple[Any, JudgeQuestion]]) -> list[Verdict]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{n}.png" for n in range(len(pictures))]
            for path, (picture, _) in zip(paths, pictures, strict=True):
                picture.save(path)
            views = (view for _, view in pictures)
            verdicts: list[Verdict] = judge.judge(list(zip(paths, views, strict=True)))
        return verdicts

    return read
