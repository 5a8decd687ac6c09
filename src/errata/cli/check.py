"""`check`: the contract tests on one plug-in, built in or third party."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from errata.core import registry
from errata.core.errors import MissingExtra, UnknownName


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered plug-in.")],
) -> None:
    """Run the contract checks on a plug-in, yours too."""
    kinds = [k for k in registry.KINDS if name in registry.names(k)]
    if not kinds:
        raise UnknownName("plug-in", name, {n for k in registry.KINDS for n in registry.names(k)})
    if importlib.util.find_spec("errata.contract") is None:
        raise MissingExtra(
            "this installation has no contract checks (errata.contract). Run `make test` in a "
            "checkout of errata, which runs them over every registered plug-in."
        )
    contract = importlib.import_module("errata.contract")
    if not contract.run(name):
        raise typer.Exit(1)
