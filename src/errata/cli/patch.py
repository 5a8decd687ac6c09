"""`patch show` and `patch verify`: print a patch folder, and check it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.printing import fall_short, print_json, say
from errata.core.errors import BadImage, BadPatch

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch

app = typer.Typer(help="Print or check a patch.", no_args_is_help=True, rich_markup_mode=None)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with patch.json.")]


@app.command("show")
def show(folder: Folder, as_json: options.AsJson = False) -> None:
    """Print the header, the sites and the edits of a patch."""
    from errata.core.patch import origins_of
    from errata.core.types import to_json
    from errata.io.patch_folder import read_edits, read_head

    head = read_head(folder)
    edits = read_edits(folder, head)
    if as_json:
        print_json({**head, "edits": [to_json(e) for e in edits]})
        return
    shape = head.get("settings", {}).get("shape")
    options.print_facts({**head["header"], "shape": shape, "sites": head["sites"]})
    say(f"origin: {', '.join(sorted(origins_of(head['header'], edits)))}")
    say(f"edits: {len(edits)}")
    for e in edits[:50]:
        images = "".join(f" [{i.shown}]" for i in e.prompt.images)
        say(f"  {e.prompt.text}{images} -> {e.target}")


@app.command("verify")
def verify(
    folder: Folder,
    backbone: Annotated[
        str | None,
        typer.Option(help="Also check that the patch was made for this model, and ask its edits."),
    ] = None,
) -> None:
    """Check that a patch and its images are unchanged and, with --backbone, that its edits hold.

    Ends with exit code 3 if an edit is not answered with its target, or cannot be asked.
    """
    from errata.io.patch_folder import load, read_head

    bb = ModelOptions(backbone).load([read_head(folder)]) if backbone is not None else None
    patch = load(folder, bb)
    not_finite = [k for k, v in patch.state_dict().items() if not bool(v.isfinite().all())]
    if not_finite:
        raise BadPatch(f"{folder} holds NaN or infinite numbers in {', '.join(not_finite[:3])}.")
    sites = ", ".join(sorted(patch.sites)) or "none"
    say(f"{folder}: undamaged, {len(patch.edits)} edits, sites {sites}")
    problems = [reason for e in patch.edits for reason in _image_problems(e)]
    for reason in problems:
        say(f"image: {reason}")
    lost = [*problems, *(_lost(bb, patch) if bb is not None else [])]
    if lost:
        fall_short(f"{folder} does not hold: {lost[0].rstrip('.')}.")


def _lost(bb: Backbone, patch: Patch) -> list[str]:
    """What is wrong with the edits of a patch, asked on its model; printed."""
    from errata.evaluation.verify import verify_patch

    say(f"made for {bb.name} ({bb.fingerprint()[:12]})")
    checks = verify_patch(bb, patch)
    kept = sum(c.kept for c in checks)
    say(f"{kept} of {len(checks)} edited questions are answered with their target")
    wrong = [str(c) for c in checks if not c.kept]
    for line in wrong:
        say(f"edit: {line}")
    return wrong


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
