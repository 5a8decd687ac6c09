"""`patch squash`: makes one patch of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.patch.folder import Folders, Force, check_out
from errata.cli.shared.printing import say


def squash(
    folders: Folders,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the patch is written.")],
    force: Force = False,
) -> None:
    """Make one patch of several, which answers as all of them do, applied in order.

    Only changes of weights can be put together (shape delta). No model is needed.
    """
    from errata.artefacts.squash import squash as squashed
    from errata.io.patch_folder import load, save

    check_out(out, force=force)
    patch = squashed([load(folder) for folder in folders])
    check_out(out, force=force)
    save(patch, out)
    numbers = sum(p.numel() for p in patch.parameters())
    say(
        f"{out}: {len(folders)} patches as one, {len(patch.edits)} edits, {numbers:,} numbers at "
        f"{len(patch.sites)} sites"
    )
