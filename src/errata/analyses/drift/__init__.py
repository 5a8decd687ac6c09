"""Drift: how far an edit of the text model changes what happens on the way to an image.

Source: the UniKE study of unified models measures how far edited text states move before the
generator and concludes that a projection filters the edit. Its scripts read another input than the
drawing does, count failures as zero, and have no control. Here every stage of
`ImageGenerator.path()` is recorded inside the real call of `draw`, and compared with

    twin      the same drawing again: 0 at every stage, exactly
    random    a random control: a Gaussian update of equal sites, rank and norm
    oracle    the image of a prompt that states the new fact: the direction of success
    spread    the median distance between two prompts of the benchmark, the unit of `signal`

The benchmark's judge reads what each image shows, and per case it is measured whether drift tells
success from failure. Four drawings (edit, rationale, both, neither) separate the effect of the edit
from that of its rationale; the rationale is the edited model's, encoded once by the edited and once
by the unedited model. Last, edited text states replace those of the unedited drawing for the
subject's tokens only, for the others only, and for all, to find which of them carry the edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from errata.analyses.drift.conditions import DrawnBatch, DrawnCase, DriftRecords
from errata.analyses.drift.summary import DriftSummary
from errata.analyses.drift.trace import drawing_steps
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Findings
from errata.core.formats.counts import counted
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.model.generation import image_generator
from errata.core.patch import Patch
from errata.core.types import Case, Probe


class DriftAnalysis(Analysis):
    """How far edits of the text model change each stage on the way to an image."""

    name = "drift"
    benchmark = "unike_umm:microworld@dev"
    takes_patch = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """stage: which of a case's image prompts. seeds: images per prompt. steps: number of
        recorded diffusion steps, first and last included. variant: how a rationale precedes the
        prompt, as in the protocol `reasoning`.
        """

        stage: str = "stage1"
        seeds: int = 2
        steps: int = 3
        variant: str = "prepend"

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without an edit or without image prompts, BadBackbone, NotFinite."""
        bb, c = image_generator(subject.backbone), self.config
        if c.seeds < 1 or c.steps < 3:
            raise BadSpec(
                f"analysis '{self.name}': seeds={c.seeds}, steps={c.steps}. Give at least 1 seed "
                "and 3 steps."
            )
        items = self._items(subject)
        records = DriftRecords()
        keep = drawing_steps(bb, items[0].probe.prompt, c.steps)
        each = max(2, subject.rows)
        for start in range(0, len(items), each):
            part = items[start : start + each]
            patches, one_each = self._patches(subject, part)
            DrawnBatch(
                subject, part, keep, patches, one_each=one_each, seeds=c.seeds, variant=c.variant
            ).run(records)
            subject.progress("drawing cases", start + len(part), len(items))
        many = f"{counted(len(items), 'case')}, {counted(c.seeds, 'picture')} each"
        where = f"{bb.name}, {subject.benchmark}: {many}. "
        summary = DriftSummary(records, [i.case.id for i in items], where)
        return Findings(
            summary.figures(),
            summary.tables(),
            {"cases": len(items), "pictures of each": c.seeds, **summary.facts()},
            (*summary.lines(), *first_look(len(items), "case")),
        )

    def _items(self, subject: Subject) -> list[DrawnCase]:
        edits = {(e.prompt, e.target) for p in subject.patches for e in p.edits}
        items = []
        for case in subject.cases:
            if subject.patches and (case.edit.prompt, case.edit.target) not in edits:
                continue
            drawn = _probe(case, "vqa", self.config.stage)
            if drawn is not None and drawn.aids is not None and case.edit.subject:
                items.append(DrawnCase(case, drawn, _probe(case, "reasoning", self.config.stage)))
        if not subject.patches and subject.editor is None:
            raise BadSpec(
                f"analysis '{self.name}' looks at edits. Give --editor NAME, or --patch DIR for "
                "edits that were made."
            )
        if len(items) < 2:
            what = "of the patch's edits " if subject.patches else ""
            raise BadSpec(
                f"{len(items)} cases {what}in {subject.benchmark} have a picture of "
                f"{self.config.stage} and a prompt that states the fact. Give the --benchmark that "
                "they come from, or another --with stage=."
            )
        return items

    def _patches(self, subject: Subject, part: Sequence[DrawnCase]) -> tuple[list[Patch], bool]:
        """The patches of a batch, and whether there is one per case."""
        if subject.patches:
            return list(subject.patches), False
        assert subject.editor is not None
        edits = [i.case.edit for i in part]
        states = [subject.state] * len(edits)
        results = subject.editor.edit_rows(subject.backbone, edits, states, seed=subject.seed)
        return [result.patch for result in results], True


def _probe(case: Case, kind: str, group: str) -> Probe | None:
    return next((p for p in case.probes if p.kind == kind and p.group == group), None)
