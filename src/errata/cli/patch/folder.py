"""The arguments that the commands of patches share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.core.errors import BadPatch

Force = Annotated[bool, typer.Option("--force", help="Replace a patch that is in DIR already.")]


def check_out(out: Path, *, force: bool) -> None:
    """Raises BadPatch or BadOutput unless a patch can be written to the folder."""
    from errata.core import files

    files.check_folder(out, BadPatch)
    if out.is_dir():
        files.finish_folder(out)
    names = files.visible(out)
    if names and "patch.json" not in names:
        raise BadPatch(
            f"{out} is not empty and holds no patch. Choose another --out, or empty it yourself."
        )
    if names and not force:
        raise BadPatch(
            f"{out} holds a patch already. Give --force to replace it, or choose another --out."
        )
