"""`errata patch ...`: what is done with saved patches; a file for each command."""

from __future__ import annotations

import typer

from errata.cli.patch.show import show
from errata.cli.patch.verify import verify

app = typer.Typer(help="Print or check a patch.", no_args_is_help=True, rich_markup_mode=None)
app.command("show")(show)
app.command("verify")(verify)
