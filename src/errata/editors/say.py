"""say: every question is answered with the target. The bound of a correction, behind a scope.

Nothing is searched: the patch holds the target's tokens and an end token, and says them whatever
is asked. Alone it is useless (no question keeps its answer). Behind a scope it shows what the best
correction would score that only ever says the target: `--editor say --scope lookup` is a table of
questions and answers, `--editor say --scope oracle` the bound of any editor that knows no
consequences of an edit.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.errors import BadEdit
from errata.core.model.backbone import Backbone
from errata.patches.say import HEAD, MOST, NORM, Say


class SayEditor(Editor):
    """Always says the target."""

    name = "say"
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    def edited_sites(self, backbone: Backbone) -> tuple[str, ...]:
        return (NORM, HEAD)

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        """The last edit of a group is the one that is said: without a scope there is only one."""
        results = []
        for group, state in request:
            edit = group[-1]
            with backbone.unedited():
                batch = backbone.encode([edit.prompt], [edit.target], eos=True)
            ids = batch.targets[0]
            if len(ids) > MOST:
                raise BadEdit(
                    f"edit '{edit.id or edit.prompt.text[:60]}' has a target of {len(ids)} tokens, "
                    f"and say takes {MOST}. Shorten it."
                )
            patch = Say(torch.tensor([ids])).requires_grad_(False)
            results.append(EditResult(backbone.place(patch), state))
        return results
