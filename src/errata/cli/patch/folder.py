"""The arguments that the commands of patches share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.core.errors import BadPatch

Force = Annotated[bool, typer.Option("--force", help="Replace a patch that is in DIR already.")]


def check_out(out: Path, *, force: bool) -> None:
    """Raises BadPatch or BadOutput unless a patch can be written to the folder."""
    from errata.io.patch_place import holds_patch

    if holds_patch(out) and not force:
        raise BadPatch(
            f"{out} holds a patch already. Give --force to replace it, or choose another --out."
        )
