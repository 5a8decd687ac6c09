"""All that is drawn of a case, with an edit and without, and what is measured on it.

Shapes: B prompts, T columns, S seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.analyses.drift.path import DrawingTrace, StateSwap, passage
from errata.analyses.drift.random_control import chance
from errata.analyses.drift.trajectories import (
    FourWay,
    Place,
    StageShift,
    departures,
    four_way,
    means,
    spread,
    subject_columns,
)
from errata.core import registry
from errata.core.analysis import Subject
from errata.core.hooks.hook import Hook
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.generation import image_generator
from errata.core.patch import Patch
from errata.core.text import mentions
from errata.core.types import Case, JudgeQuestion, Probe, Prompt, Verdict
from errata.patches.rows import Rows
from errata.training.optimise import generator

if TYPE_CHECKING:
    from errata.analyses.drift import DriftAnalysis

#: what is compared with what: condition -> (drawing, base, the same prompts)
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
#: the four readings
FOUR = ("fresh", "edit", "rationale", "both")


@dataclass(frozen=True)
class DrawnCase:
    """One case with what is drawn of it."""

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
    """Everything that was measured, per case.

    steps: (condition, place) -> case -> Step. spreads: place -> distances between prompts. shown:
    drawing -> case -> a verdict per seed. ways: stage -> case -> four-way. stated: whether the
    edited model's rationale states the target. echo: how far the drawing from edited text states
    is from that of the edited model; 0 where the edit acts through them alone.
    """

    steps: dict[tuple[str, Place], dict[str, StageShift]] = field(default_factory=dict)
    spreads: dict[Place, list[float]] = field(default_factory=dict)
    shown: dict[str, dict[str, list[Verdict]]] = field(default_factory=dict)
    ways: dict[str, dict[str, FourWay]] = field(default_factory=dict)
    stated: dict[str, bool] = field(default_factory=dict)
    moments: tuple[float, ...] = ()
    stages: tuple[str, ...] = ()
    echo: float = 0.0


class DrawnBatch:
    """Some cases, drawn together. apart: there is one patch per case, else all are live for all."""

    def __init__(
        self,
        subject: Subject,
        items: Sequence[DrawnCase],
        config: DriftAnalysis.Config,
        keep: Sequence[int],
        patches: Sequence[Patch],
        *,
        apart: bool,
    ) -> None:
        self.subject, self.bb = subject, image_generator(subject.backbone)
        self.items, self.config, self.keep = items, config, keep
        self.edit = [Rows(patches)] if apart else list(patches)
        rng = generator(subject.seed, f"drift/{items[0].case.id}")
        made = [c for p in patches if (c := chance(p, rng)) is not None]
        self.random: list[Patch] | None = None
        if len(made) == len(patches):
            self.random = [Rows(made)] if apart else made
        self.passages: dict[str, tuple[DrawingTrace, Tensor]] = {}

    def run(self, seen: DriftRecords) -> None:
        prompts = [i.probe.prompt for i in self.items]
        self._draw("fresh", prompts)
        self._draw("twin", prompts)
        self._draw("edit", prompts, *self.edit)
        if self.random is not None:
            self._draw("random", prompts, *self.random)
        self._draw("oracle", [i.oracle for i in self.items])
        self._swap(prompts)
        self._reason(seen)
        self._compare(seen)
        self._judge(seen)

    def _draw(self, name: str, prompts: Sequence[Prompt], *hooks: Hook) -> None:
        seeds = range(self.config.seeds)
        columns = subject_columns(self.bb, prompts, [i.subject for i in self.items])
        self.passages[name] = passage(self.bb, prompts, seeds, self.keep, *hooks), columns

    def _swap(self, prompts: Sequence[Prompt]) -> None:
        """Edited text states in the unedited drawing."""
        tap = next(s for s in self.bb.path() if s.name == "tap")
        edited, subject = self.passages["edit"]
        wheres = {"subject": subject, "others": edited.mask & ~subject, "all": edited.mask}
        for name, where in wheres.items():
            self._draw(name, prompts, StateSwap(tap.site, edited.text["tap"], where))

    def _reason(self, seen: DriftRecords) -> None:
        """The edited model's rationale, encoded by the unedited and by the edited model."""
        asked = [i.reasoning for i in self.items]
        if any(r is None for r in asked):
            return
        probes = [r for r in asked if r is not None]
        with torch.no_grad(), self.bb.applied(*self.edit):
            batch = self.bb.encode([p.prompt for p in probes])
            said = self.bb.generate(batch, [max(1, p.cap) for p in probes])
        texts = [self.bb.decode(g.ids).strip() for g in said]
        compose = rationale_prompt(self.config.variant)
        prompts = [compose(i.probe, t) for i, t in zip(self.items, texts, strict=True)]
        self._draw("rationale", prompts)
        self._draw("both", prompts, *self.edit)
        for item, text in zip(self.items, texts, strict=True):
            seen.stated[item.case.id] = mentions(text, item.case.edit.target)

    def _compare(self, seen: DriftRecords) -> None:
        fresh = self.passages["fresh"]
        seen.moments, seen.stages = fresh[0].moments, (*fresh[0].text, *fresh[0].steps)
        for place, distances in spread(*fresh):
            seen.spreads.setdefault(place, []).extend(distances)
        ids = [i.case.id for i in self.items]
        for condition, (name, base, aligned) in COMPARED.items():
            if name not in self.passages or base not in self.passages:
                continue
            oracle = self.passages["oracle"] if base == "fresh" else None
            found = departures(*self.passages[base], *self.passages[name], oracle, aligned=aligned)
            for place, steps in found.items():
                seen.steps.setdefault((condition, place), {}).update(zip(ids, steps, strict=True))
        if "both" in self.passages:
            for stage in fresh[0].text:
                four = (means(self.passages[n][0], stage) for n in FOUR)
                seen.ways.setdefault(stage, {}).update(zip(ids, four_way(*four), strict=True))
        whole, edit = self.passages["all"][0].pixels, self.passages["edit"][0].pixels
        seen.echo = max(seen.echo, float((whole - edit).abs().max()))

    def _judge(self, seen: DriftRecords) -> None:
        judge = judge_of(self.subject.benchmark)
        if judge is None:
            return
        for name, (drawn, _) in self.passages.items():
            views = [i.probe.view for i in self.items]
            rows = zip(drawn.pictures, views, strict=True)
            read = judge([(p, v) for row, v in rows if v is not None for p in row])
            each = self.config.seeds
            for b, item in enumerate(self.items):
                part = read[b * each : (b + 1) * each]
                seen.shown.setdefault(name, {})[item.case.id] = part


def rationale_prompt(variant: str) -> Callable[[Probe, str], Prompt]:
    """How the protocol `reasoning` puts a rationale before an image prompt. Raises BadSpec."""
    made: Any = registry.load("protocols", "reasoning")(variant)
    return lambda probe, text: made.composed(probe, text).prompt


def judge_of(
    benchmark: str,
) -> Callable[[Sequence[tuple[Any, JudgeQuestion]]], list[Verdict]] | None:
    """The benchmark's own judge, over pictures in memory; None where it has none."""
    spec = BenchmarkSpec.parse(benchmark)
    made = registry.load("benchmarks", spec.name)()
    names = {made.judge(task) for task in spec.tasks}
    if len(names) != 1 or not (name := names.pop()):
        return None
    judge = registry.load("judges", name)()

    def read(pictures: Sequence[tuple[Any, JudgeQuestion]]) -> list[Verdict]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{n}.png" for n in range(len(pictures))]
            for path, (picture, _) in zip(paths, pictures, strict=True):
                picture.save(path)
            views = (view for _, view in pictures)
            found: list[Verdict] = judge.judge(list(zip(paths, views, strict=True)))
        return found

    return read
