"""`check`: the contract checks on one plug-in, built in or third party."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import _shared as shared
from errata.core import registry
from errata.core.errors import UnknownName


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered plug-in.")],
) -> None:
    """Run the contract checks on a plug-in, yours too."""
    known = {n for kind in registry.KINDS for n in registry.names(kind)}
    if name not in known:
        raise UnknownName("plug-in", name, known)
    shared.quiet()
    from errata import contract

    if not contract.run(name):
        raise typer.Exit(1)
