"""Editors, one file each: how an edit is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.types import Edit


def choose(backbone: Backbone, edits: Sequence[Edit]) -> tuple[Editor, str]:
    """(editor for these edits on this model, why this one). Raises BadEdit if none fits.

    Only editors that may be chosen (`Editor.choice`) and that need no prepared state come into
    question.
    """
    from errata.core import registry
    from errata.core.errors import BadEdit

    refused = []
    classes = registry.usable("editors").values()
    for cls in sorted((c for c in classes if c.choice), key=lambda c: (c.choice, c.name)):
        editor = cls().for_backbone(backbone)
        reason = editor.unfit(backbone, edits)
        if reason is None:
            kinds = " and ".join(sorted({e.modality for e in edits}))
            why = f"it needs no prepared state, edits {kinds} facts, and fits {backbone.name}"
            return editor, why
        refused.append(f"{cls.name} {reason}")
    raise BadEdit(
        f"no editor could be chosen for {backbone.name}: {'; '.join(refused)}. Name one with "
        "--editor; `errata list editors` shows them all."
    )
