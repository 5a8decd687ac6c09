"""`data audit` and `data verify`: facts about a benchmark's files."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from errata.cli import _shared as shared
from errata.core import registry
from errata.core.errors import BadData

app = typer.Typer(help="Look at benchmark data.", no_args_is_help=True, rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="BENCHMARK", help="See `errata list benchmarks`.")]


def _benchmark(name: str) -> Any:
    return registry.load("benchmarks", name.partition(":")[0])()


@app.command("audit")
def audit(name: Name, root: shared.Root = None, as_json: shared.AsJson = False) -> None:
    """Print what train and eval share, and which rows are dirty, from the files themselves."""
    facts = _benchmark(name).audit(root=root)
    shared.print_json(facts) if as_json else shared.print_facts(facts)


@app.command("verify")
def verify(name: Name, root: shared.Root = None, as_json: shared.AsJson = False) -> None:
    """Print what is present, and exit 2 when something is missing or damaged."""
    facts = _benchmark(name).verify(root=root)
    shared.print_json(facts) if as_json else shared.print_facts(facts)
    if facts.get("ok") is False:
        raise BadData(
            f"{name}: some files are missing or damaged (above). Get them again, then repeat."
        )
