"""`patch import-peft`: makes a patch of a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.patch.folder import Force, check_out
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import say
from errata.core.formats.counts import counted


@takes_model()
def import_peft(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER_DIR", help="A folder with adapter_config.json.")
    ],
    model: ModelOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the patch is written.")],
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Also an adapter whose config names another base model."),
    ] = False,
    force: Force = False,
) -> None:
    """Make an ordinary patch of a LoRA adapter in PEFT's format.

    It answers as the adapter does, and stacks with other patches. It holds no edits: nobody knows
    which questions it was trained on.
    """
    from errata.artefacts.peft_import import import_peft as imported
    from errata.io.patch_folder import save

    check_out(out, force=force)
    patch = imported(adapter, model.load(), any_base=any_base)
    check_out(out, force=force)  # another command may have written it meanwhile
    save(patch, out)
    sites = counted(len(patch.sites), "site")
    say(f"{out}: a patch of {patch.header.backbone} at {sites}, without edits")
