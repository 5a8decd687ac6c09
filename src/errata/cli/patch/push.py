"""`patch push`: puts a saved patch on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.patch.verify import ask_edits
from errata.cli.shared import patches
from errata.cli.shared.model import ModelOptions
from errata.cli.shared.printing import fall_short, say


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with patch.json.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name, made if new.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who may read a new repository."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, made if new. Default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    license: Annotated[
        str | None, typer.Option(help="An SPDX name for the card, such as mit.")
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request instead of a commit.")
    ] = False,
    backbone: Annotated[
        str | None,
        typer.Option(help="Ask the edits on this model first; the card says how many hold."),
    ] = None,
) -> None:
    """Upload a patch with a card. Log in first: `hf auth login`, or HF_TOKEN.

    With --backbone, a patch whose edits do not all hold is not uploaded (exit code 3).
    """
    from errata.io.hub import Upload, check_upload
    from errata.io.patch_card import check_license
    from errata.io.patch_hub import files_of, located, push_folder

    to = Upload(repo_id, message, private, None, revision, pull_request)
    check_upload(to)
    check_license(license)
    patches.quiet_downloads()
    patch = located(folder)
    pictures = sum(name.startswith("images/") for name in files_of(patch.folder))
    measured: list[str] = []
    if backbone is not None:
        from errata.evaluation.verify import summary

        bb = ModelOptions(backbone).load([patch.head()])
        checks = ask_edits(bb, [patch.load(bb)], None)
        lost = [c for c in checks if not c.kept]
        if lost:
            fall_short(f"{folder} does not hold and is not uploaded: {lost[0]}.")
        measured = summary(checks)
    url = push_folder(patch.folder, to, license=license, measured=measured)
    say(f"pictures of the facts that were uploaded: {pictures or 'none'}")
    say(url)
