"""`patch squash`: makes one patch of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.patch.folder import Force, check_out
from errata.cli.shared import patches
from errata.cli.shared.printing import say
from errata.core.formats.counts import counted


def squash(
    given: patches.Several,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the patch is written.")],
    force: Force = False,
) -> None:
    """Make one patch of several, which answers as all of them do, applied in order.

    Only changes of weights can be put together (shape delta). No model is needed. Pictures that
    travel with a patch travel with the joint one.
    """
    from errata.artefacts.squash import squash as squashed
    from errata.core.types import to_json
    from errata.io.patch_folder import save
    from errata.io.patch_images import names_inside

    check_out(out, force=force)
    folders = patches.located(given)
    parts = [p.load() for p in folders]
    patch = squashed(parts)
    travel = any(
        names_inside([to_json(e) for e in part.edits], at.folder)
        for part, at in zip(parts, folders, strict=True)
    )
    check_out(out, force=force)
    save(patch, out, with_images=travel)
    numbers = sum(p.numel() for p in patch.parameters())
    say(
        f"{out}: {counted(len(given), 'patch')} as one, {counted(len(patch.edits), 'edit')}, "
        f"{numbers:,} numbers at {counted(len(patch.sites), 'site')}"
    )
