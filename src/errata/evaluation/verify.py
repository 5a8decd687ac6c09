"""Whether edits hold: each edited question is asked, and compared with its target.

With a file of facts, its other questions are asked too: what follows from a fact should have its
answer, and everything else the answer that it has without the patches. The rule is that of the
metric `exact`. An edit that a later edit of the same question replaces is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core import registry
from errata.core.errors import BadData, BadImage, BadPatch
from errata.core.files import FilePath
from errata.core.formats.counts import counted
from errata.core.formats.validation import path_of
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Ask
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.patch import Patch
from errata.core.types import Answer, Case, Edit, Probe, Prompt, brief
from errata.evaluation.answers import PromptRequest, ask_all
from errata.io.images import hash_image
from errata.patches.rows import Rows
from errata.patches.stack import stacked


@dataclass(frozen=True)
class EditCheck:
    """edit: what the question belongs to. answer: with the patch. kept: whether it is `wanted`.

    reason: why it could not be asked, else "". probe: the question that was asked; `probe.kind`
    says what it is for. wanted: the target, or for a locality question the answer without patches.
    """

    edit: Edit
    answer: Answer
    kept: bool
    reason: str
    probe: Probe
    wanted: str

    def __str__(self) -> str:
        asked = f"'{self.probe.prompt.text[:60]}'"
        if self.reason:
            return f"{asked} could not be asked ({self.reason.rstrip('.')})"
        said = self.answer.text[:60] if self.answer.stopped else f"{self.answer.text[:60]} ..."
        if self.kept:
            return f"{asked} is answered '{said}'"
        return f"{asked} is answered '{said}', not '{self.wanted[:60]}'"

    def __repr__(self) -> str:
        return f"EditCheck({self.probe.kind}, {'kept' if self.kept else 'LOST'}: {self})"


def verify(
    backbone: Backbone, patches: Patch | Sequence[Patch], facts: FilePath | None = None
) -> list[EditCheck]:
    """Asks the edited questions of patches that are applied together; a check per question.

    facts: a file of facts; of those that the patches edit, the other questions are asked too (see
    docs/facts.md). All its facts are asked where the patches name none (an
    imported adapter). Raises BadPatch for no patch, BadData for a wrong file.
    """
    check_backbone(backbone)
    given: list[Any] = [patches] if isinstance(patches, Patch) else list(patches)
    if not given or not all(isinstance(p, Patch) for p in given):
        raise BadPatch(
            f"verify takes a patch or a list of patches, not {brief(patches)}. errata.load_patch "
            "reads one; a result of an editor holds it as `.patch`."
        )
    patch = given[0] if len(given) == 1 else stacked(*given)
    edits, rows = _edits_of(patch)
    if not edits and facts is not None:  # an adapter of somebody else names no facts
        edits = [case.edit for case in _cases_of(path_of(facts, "a file of facts"))]
        rows = [0] * len(edits)
    others = [] if facts is None else _other_questions(edits, path_of(facts, "a file of facts"))
    before = _answers(backbone, [p for _, p in others], [0] * len(others))
    with backbone.applied(patch):
        checks = _asked(backbone, edits, rows)
        after = _answers(backbone, [p for _, p in others], [0] * len(others))
    rest = zip(others, before, after, strict=True)
    return [*checks, *(_check(edit, probe, b, a) for (edit, probe), b, a in rest)]


def summary(checks: Sequence[EditCheck]) -> list[str]:
    """A line for each kind of question: how many of them are answered as they should be."""
    lines = []
    for kind in {c.probe.kind: c.probe.kind_info for c in checks}.values():
        kept = [c.kept for c in checks if c.probe.kind == kind.name]
        what = "with their target" if kind.expects_target else "as without the patch"
        asked = counted(len(kept), "edited question" if kind.main else "question")
        of = "" if kind.main else f" of {kind.heading}"
        verb = "is" if len(kept) == 1 else "are"
        lines.append(f"{sum(kept)} of {asked}{of} {verb} answered {what}")
    return lines


def verify_edits(
    backbone: Backbone, edits: Sequence[Edit], patches: Sequence[Patch]
) -> list[EditCheck]:
    """A check per edit, asked with the patch of the same index on top of what is applied."""
    together = all(p is patches[0] for p in patches) and patches[0].rows is None
    with backbone.applied(*([patches[0]] if together else [backbone.place(Rows(patches))])):
        return _asked(backbone, edits, range(len(edits)))


def _edits_of(patch: Patch) -> tuple[list[Edit], list[int]]:
    """The edits that no later edit of the same question replaces, and the row of each."""
    members = patch.members()
    owners = [(patch, 0)]
    if patch.rows is not None and members is not None:
        owners = [(m, r) for r, m in enumerate(members) if isinstance(m, Patch)]
    pairs = [(edit, row) for owner, row in owners for edit in last_of_each(owner.edits)]
    return [edit for edit, _ in pairs], [row for _, row in pairs]


def last_of_each(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without those that a later edit of the same question replaces."""
    last = {e.prompt: e for e in edits}
    return [e for e in edits if last[e.prompt] is e]


def _other_questions(edits: Sequence[Edit], file: Path) -> list[tuple[Edit, Probe]]:
    """What a file of facts asks beside these edits; raises BadData where it holds none of them."""
    cases = _cases_of(file)
    edited = {_key(e.prompt, e.target) for e in edits}
    cases = [c for c in cases if _key(c.edit.prompt, c.edit.target) in edited]
    if not cases:
        raise BadData(
            f"{file} holds none of the {len(edits)} facts that are edited. Give the file that the "
            "edits were made from."
        )
    # what one fact should keep, another one of the patches may change
    changed = {_key(e.prompt) for e in edits}
    return [
        (case.edit, probe)
        for case in cases
        for probe in case.probes
        if not probe.kind_info.main and _key(probe.prompt) not in changed
    ]


def _cases_of(file: Path) -> list[Case]:
    benchmark = registry.load("benchmarks", "facts")()
    specs = [BenchmarkSpec("facts", split=split, source=str(file)) for split in benchmark.splits]
    return [case for spec in specs for case in benchmark.load(spec).cases]


def _key(prompt: Prompt, target: str = "") -> tuple[Any, ...]:
    """Equal for the same question about the same pictures, wherever their files are."""
    pictures = []
    for image in prompt.images:
        try:
            pictures.append(image.sha256 or hash_image(image))
        except BadImage:
            pictures.append(image.uri)
    return (prompt.text, target, *pictures)


def _asked(backbone: Backbone, edits: Sequence[Edit], rows: Sequence[int]) -> list[EditCheck]:
    probes = [Probe(str(i), e.prompt, "reliability", "", e.target) for i, e in enumerate(edits)]
    answers = _answers(backbone, probes, rows)
    return [_check(e, p, a, a) for e, p, a in zip(edits, probes, answers, strict=True)]


def _answers(backbone: Backbone, probes: Sequence[Probe], rows: Sequence[int]) -> list[Answer]:
    requests = [
        PromptRequest(Ask(f"{i}/{p.id}", p), r)
        for i, (p, r) in enumerate(zip(probes, rows, strict=True))
    ]
    return ask_all(backbone, requests, step=0)


def _check(edit: Edit, probe: Probe, before: Answer, after: Answer) -> EditCheck:
    reasons = [str(a.notes["unscored"]) for a in (after, before) if "unscored" in a.notes]
    wanted = probe.reference if probe.kind_info.expects_target else before.text
    score = None if reasons else registry.load("metrics", "exact")().score(before, after, probe)
    if score is None and not reasons:
        reasons = ["there is no answer that it could be compared with"]
    return EditCheck(edit, after, score == 1, reasons[0] if reasons else "", probe, wanted)
