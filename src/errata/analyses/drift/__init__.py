"""Drift: how far an edit of the text model gets on its way into a picture, and where it stops.

Source: the UniKE study of unified models measures how far edited text states move before the
generator and concludes that a projection filters the edit. Its scripts read another input than
the drawing does, count failures as zero, and compare with nothing. Here every stage of
`ImageGenerator.path()` is read inside the real call of `draw`, and stands beside

    twin      the same drawing again: 0 at every stage, exactly
    random    a change of the same matrices, ranks and norms in a random direction
    oracle    the picture from a prompt that states the new fact: the direction of success
    spread    the median distance between two prompts of the benchmark, the unit of `signal`

What each drawing shows is read by the benchmark's judge, and per case it is asked whether drift
tells success from failure. Four readings (edit, rationale, both, none) part what the edit does from
what its rationale does; the rationale is the edited model's, once encoded by itself, once by the
unedited model. Last, edited text states are put into the unedited drawing for the subject's
tokens only, for the others only, and for all: which of them carry the edit?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from errata.analyses.drift.drawings import DrawnBatch, DrawnCase, DriftRecords
from errata.analyses.drift.path import drawing_steps
from errata.analyses.drift.shown import DriftSummary
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadSpec
from errata.core.figure import Findings
from errata.core.model.generation import image_generator
from errata.core.patch import Patch
from errata.core.types import Case, Probe
from errata.evaluation.bootstrap import Bootstrap


class DriftAnalysis(Analysis):
    """How far edits of the text model get on the way into a picture."""

    name = "drift"
    benchmark = "unike_umm:microworld@dev"
    takes_patch = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """stage: which of a case's pictures. seeds: pictures of each. steps: of the drawing's, at
        how many it is read, first and last included. variant: how a rationale stands before the
        prompt, as in the protocol `reasoning`.
        """

        stage: str = "stage1"
        seeds: int = 2
        steps: int = 3
        variant: str = "prepend"

    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec without an edit or pictures to look at, BadBackbone, NotFinite."""
        bb, c = image_generator(subject.backbone), self.config
        if c.seeds < 1 or c.steps < 3:
            raise BadSpec(
                f"analysis '{self.name}': seeds={c.seeds}, steps={c.steps}. Give at least 1 seed "
                "and 3 steps."
            )
        items = self._items(subject)
        seen = DriftRecords()
        keep = drawing_steps(bb, items[0].probe.prompt, c.steps)
        each = max(2, subject.rows)
        for start in range(0, len(items), each):
            part = items[start : start + each]
            patches, apart = self._patches(subject, part)
            DrawnBatch(subject, part, c, keep, patches, apart=apart).run(seen)
            subject.progress("drawing cases", start + len(part), len(items))
        where = f"{bb.name}, {subject.benchmark}: {len(items)} cases, {c.seeds} pictures each. "
        shown = DriftSummary(seen, Bootstrap([i.case.id for i in items]), where)
        return Findings(
            shown.figures(),
            shown.tables(),
            {"cases": len(items), "pictures of each": c.seeds, **shown.facts()},
            (*shown.lines(), *first_look(len(items), "cases")),
        )

    def _items(self, subject: Subject) -> list[DrawnCase]:
        edits = {(e.prompt, e.target) for p in subject.patches for e in p.edits}
        found = []
        for case in subject.cases:
            if subject.patches and (case.edit.prompt, case.edit.target) not in edits:
                continue
            drawn = _probe(case, "vqa", self.config.stage)
            if drawn is not None and drawn.aids is not None and case.edit.subject:
                found.append(DrawnCase(case, drawn, _probe(case, "reasoning", self.config.stage)))
        if not subject.patches and subject.editor is None:
            raise BadSpec(
                f"analysis '{self.name}' looks at edits. Give --editor NAME, or --patch DIR for "
                "edits that were made."
            )
        if len(found) < 2:
            what = "of the patch's edits " if subject.patches else ""
            raise BadSpec(
                f"{len(found)} cases {what}in {subject.benchmark} have a picture of "
                f"{self.config.stage} and a prompt that states the fact. Give the --benchmark that "
                "they come from, or another --with stage=."
            )
        return found

    def _patches(self, subject: Subject, part: Sequence[DrawnCase]) -> tuple[list[Patch], bool]:
        """The patches of a batch, and whether there is one per case."""
        if subject.patches:
            return list(subject.patches), False
        assert subject.editor is not None
        edits = [i.case.edit for i in part]
        states = [subject.state] * len(edits)
        found = subject.editor.edit_rows(subject.backbone, edits, states, seed=subject.seed)
        return [f.patch for f in found], True


def _probe(case: Case, kind: str, group: str) -> Probe | None:
    return next((p for p in case.probes if p.kind == kind and p.group == group), None)
