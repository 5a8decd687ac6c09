"""Patches as arguments and options: folders, or names on the Hugging Face Hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.core.errors import UserError

if TYPE_CHECKING:
    from errata.io.patch_hub import Located

Applied = Annotated[
    list[str] | None,
    typer.Option(
        "--patch",
        metavar="DIR",
        help="A patch to apply: its folder, or its name on the Hub (user/name, "
        "user/name@revision); repeatable, in order.",
    ),
]
One = Annotated[
    str, typer.Argument(metavar="DIR", help="A folder with patch.json, or a name on the Hub.")
]
Several = Annotated[
    list[str],
    typer.Argument(metavar="DIR...", help="Folders with patch.json or names on the Hub, in order."),
]


def quiet_downloads() -> None:
    """Turns off the progress bars of the hub where nobody watches them."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()


def located(given: Sequence[str] | None) -> list[Located]:
    """The patches that are given, on this disk; a wrong one is reported before a model is loaded.

    Those on the hub are downloaded. Raises BadPatch, BadSpec, BadEndpoint.
    """
    from errata.io.patch_hub import located as locate

    if given:
        quiet_downloads()
    found = [locate(text) for text in given or ()]
    for patch in found:
        patch.head()
    return found


def heads_in(folder: Path | None) -> list[dict[str, Any]]:
    """Of the patches in a folder; those that cannot be read are left out later, with a line."""
    from errata.io.patch_folder import read_head
    from errata.serve.catalogue import patches_in

    heads = []
    for place in patches_in(folder).values():
        with suppress(UserError):
            heads.append(read_head(place))
    return heads
