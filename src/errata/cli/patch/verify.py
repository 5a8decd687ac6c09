"""`patch verify`: checks patches and, on their model, the answers of their edits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.patch.folder import Folders
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.printing import fall_short, say
from errata.core.errors import BadImage, BadPatch, BadSpec

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch


def verify(
    folders: Folders,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Also check that the patches were made for this model, and ask their edits, with "
            "all patches applied together."
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="The file that the edits were made from: its other questions are asked too.",
        ),
    ] = None,
) -> None:
    """Check that patches and their images are unchanged and, with --backbone, that the edits hold.

    Ends with exit code 3 if a question does not have the answer that it should have, or cannot be
    asked.
    """
    from errata.io.patch_folder import load, read_head

    if facts is not None and backbone is None:
        raise BadSpec("--facts asks a model. Name it with --backbone.")
    heads = [read_head(folder) for folder in folders]
    bb = ModelOptions(backbone).load(heads) if backbone is not None else None
    patches, lost = [load(folder, bb) for folder in folders], []
    for folder, patch in zip(folders, patches, strict=True):
        not_finite = [k for k, v in patch.state_dict().items() if not bool(v.isfinite().all())]
        if not_finite:
            raise BadPatch(
                f"{folder} holds NaN or infinite numbers in {', '.join(not_finite[:3])}."
            )
        say(f"{folder}: undamaged, {len(patch.edits)} edits, {_places(patch)}")
        problems = [reason for e in patch.edits for reason in _image_problems(e)]
        for reason in problems:
            say(f"image: {reason}")
        lost += problems
    if bb is not None:
        lost += _lost(bb, patches, facts)
    if lost:
        what = f"{folders[0]} does" if len(folders) == 1 else f"{len(folders)} patches together do"
        fall_short(f"{what} not hold: {lost[0].rstrip('.')}.")


def _places(patch: Patch) -> str:
    sites = sorted(patch.sites)
    shown = ", ".join(sites[:4]) or "none"
    return f"sites {shown}{f' and {len(sites) - 4} more' if len(sites) > 4 else ''}"


def _lost(bb: Backbone, patches: Sequence[Patch], facts: Path | None) -> list[str]:
    """What is wrong with the answers of patches, asked together on their model; printed."""
    from errata.evaluation.verify import verify as asked

    say(f"made for {bb.name} ({bb.fingerprint()[:12]})")
    checks = asked(bb, patches, facts)
    for kind in {c.probe.kind: c.probe.kind_info for c in checks}.values():
        kept = [c.kept for c in checks if c.probe.kind == kind.name]
        what = "with their target" if kind.expects_target else "as without the patch"
        named = "edited questions" if kind.main else f"questions of {kind.heading}"
        say(f"{sum(kept)} of {len(kept)} {named} are answered {what}")
    wrong = [c for c in checks if not c.kept]
    for check in wrong:
        say(f"{'edit' if check.probe.kind_info.main else check.probe.kind}: {check}")
    return [str(c) for c in wrong]


def _image_problems(edit: Any) -> list[str]:
    from errata.io.images import hash_image

    problems = []
    for image in edit.prompt.images:
        try:
            if image.sha256 is not None and hash_image(image) != image.sha256:
                problems.append(f"{image.shown} has changed since the edit was made")
        except BadImage as e:
            problems.append(str(e))
    return problems
