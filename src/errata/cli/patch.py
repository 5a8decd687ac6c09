"""`patch show` and `patch verify`: print a patch folder, and check it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.printing import fall_short, print_json, say
from errata.core.errors import BadImage, BadPatch, BadSpec

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
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders with patch.json, in order."),
    ],
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
