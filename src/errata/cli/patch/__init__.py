"""`errata patch ...`: what is done with saved patches; a file for each command."""

from __future__ import annotations

import typer

from errata.cli.patch.diff import diff
from errata.cli.patch.push import push
from errata.cli.patch.show import show
from errata.cli.patch.verify import verify

app = typer.Typer(
    help="Print, check, compare or share patches.", no_args_is_help=True, rich_markup_mode=None
)
app.command("diff")(diff)
app.command("push")(push)
app.command("show")(show)
app.command("verify")(verify)
