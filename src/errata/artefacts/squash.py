"""Several changes of weights as one patch, with the edits and the origins of all.

Low-rank parts are concatenated; where they would hold more numbers than the whole matrix, they
become dense. An edit that a later patch contradicts is left out, as in a stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from errata.artefacts.changes import WeightChange, check_one_model, deltas, weight_changes
from errata.artefacts.peft_export import patches_of
from errata.core.errors import BadSpec, Notice
from errata.core.files import versions
from errata.core.patch import Header, Patch, inherit, remarks, same_prompt
from errata.core.types import Edit
from errata.patches.delta import Delta

PURPOSE = "a part of one joint patch"


def squash(patches: Sequence[Patch]) -> Delta:
    """One patch that answers as all of these do when they are applied in order.

    Its header is that of the first, with the origins of all and a note of each (`squashed`);
    arguments and settings stay only where all patches have the same. Raises BadPatch for patches
    that are no change of weights, BadSpec for patches of two prompt styles, FingerprintMismatch.
    """
    patches = patches_of(list(patches))
    check_one_model(patches)
    acting = list(deltas(patches, PURPOSE))
    styles = sorted({p.header.style for p in acting} - {""})
    if len(styles) > 1:
        raise BadSpec(
            f"the patches were made for prompts in the styles {' and '.join(styles)}, and one "
            "patch has one style. Make the edits again in one of them."
        )
    for line in remarks(acting, acting):
        warnings.warn(line, Notice, stacklevel=2)
    changes = weight_changes(acting, PURPOSE)
    one = Delta({site: _part(c.smallest()) for site, c in changes.items()}).requires_grad_(False)
    merged = inherit(one, acting)
    return merged.with_header(_header(merged.header, acting), _edits(acting))


def _part(change: WeightChange) -> dict[str, Tensor]:
    part = {"A": change.a, "B": change.b} if change.dense is None else {"dense": change.dense}
    return part if change.bias is None else {**part, "bias": change.bias}


def _edits(patches: Sequence[Patch]) -> list[Edit]:
    """The edits of all, each once; of several for one question the last."""
    edits = list(dict.fromkeys(e for p in patches for e in p.edits))
    by_text: dict[str, list[Edit]] = {}
    for edit in edits:
        by_text.setdefault(edit.prompt.text, []).append(edit)
    again = {
        id(e)
        for same in by_text.values()
        for i, e in enumerate(same)
        if any(same_prompt(e.prompt, later.prompt) for later in same[i + 1 :])
    }
    return [e for e in edits if id(e) not in again]


def _header(header: Header, patches: Sequence[Patch]) -> Header:
    headers = [p.header for p in patches]
    if len(headers) == 1:
        return header
    notes: dict[str, Any] = {
        **{k: v for k, v in header.notes.items() if k in ("origins", "on_top_of")},
        "squashed": [
            {"editor": p.header.editor, "edits": len(p.edits), "created": p.header.created,
             "origins": sorted(p.origins)}
            for p in patches
        ],
    }  # fmt: skip
    style = next((h.style for h in headers if h.style), "")
    if style:
        notes["style"] = style
    return replace(
        header,
        editor="+".join(dict.fromkeys(h.editor for h in headers)),
        arguments=_common([h.arguments for h in headers]),
        config=_common([h.config for h in headers]),
        state=headers[0].state if len({h.state for h in headers}) == 1 else "",
        versions=versions(),
        created=max(h.created for h in headers),
        notes=notes,
    )


def _common(settings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return settings[0] if all(s == settings[0] for s in settings) else {}
