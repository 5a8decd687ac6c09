"""Whether edits hold: each edited question is asked, and compared with its target.

The rule is that of the metric `exact`. An edit that a later edit of the same question replaces is
not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from errata.core import registry
from errata.core.measure.protocol import Ask
from errata.core.model.backbone import Backbone
from errata.core.patch import Patch
from errata.core.types import Answer, Edit, Probe
from errata.evaluation.answers import PromptRequest, ask_all
from errata.patches.rows import Rows


@dataclass(frozen=True)
class EditCheck:
    """edit: what was asked. answer: with the patch. kept: whether it is the target.

    reason: why it could not be asked, else "".
    """

    edit: Edit
    answer: Answer
    kept: bool
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"'{self.edit.prompt.text[:60]}' could not be asked ({self.reason.rstrip('.')})"
        said = self.answer.text[:60] if self.answer.stopped else f"{self.answer.text[:60]} ..."
        return f"'{self.edit.prompt.text[:60]}' is answered '{said}', not '{self.edit.target[:60]}'"


def verify_edits(
    backbone: Backbone, edits: Sequence[Edit], patches: Sequence[Patch]
) -> list[EditCheck]:
    """A check per edit, asked with the patch of the same index on top of what is applied."""
    together = all(p is patches[0] for p in patches) and patches[0].rows is None
    with backbone.applied(*([patches[0]] if together else [backbone.place(Rows(patches))])):
        return _asked(backbone, edits, range(len(edits)))


def verify_patch(backbone: Backbone, patch: Patch) -> list[EditCheck]:
    """A check for each edit of a patch that no later edit of the same question replaces."""
    members = patch.members()
    owners = [(patch, 0)]
    if patch.rows is not None and members is not None:
        owners = [(m, r) for r, m in enumerate(members) if isinstance(m, Patch)]
    edits, rows = [], []
    for owner, row in owners:
        for edit in last_of_each(owner.edits):
            edits.append(edit)
            rows.append(row)
    with backbone.applied(patch):
        return _asked(backbone, edits, rows)


def last_of_each(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without those that a later edit of the same question replaces."""
    last = {e.prompt: e for e in edits}
    return [e for e in edits if last[e.prompt] is e]


def _asked(backbone: Backbone, edits: Sequence[Edit], rows: Sequence[int]) -> list[EditCheck]:
    probes = [Probe(str(i), e.prompt, "reliability", "", e.target) for i, e in enumerate(edits)]
    requests = [PromptRequest(Ask(p.id, p), r) for p, r in zip(probes, rows, strict=True)]
    exact = registry.load("metrics", "exact")()
    checks = []
    for edit, probe, answer in zip(edits, probes, ask_all(backbone, requests, step=0), strict=True):
        reason = str(answer.notes.get("unscored", ""))
        kept = not reason and exact.score(answer, answer, probe) == 1
        checks.append(EditCheck(edit, answer, bool(kept), reason))
    return checks
