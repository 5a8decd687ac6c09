"""The commands of `errata patch`, one file each."""

from __future__ import annotations

import typer

from errata.cli.patch.diff import diff
from errata.cli.patch.export_peft import export_peft
from errata.cli.patch.import_peft import import_peft
from errata.cli.patch.merge import merge
from errata.cli.patch.push import push
from errata.cli.patch.show import show
from errata.cli.patch.squash import squash
from errata.cli.patch.verify import verify

app = typer.Typer(
    help="Print, check, compare, share, convert, merge or join patches.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("show")(show)
app.command("verify")(verify)
app.command("diff")(diff)
app.command("squash")(squash)
app.command("merge")(merge)
app.command("export-peft")(export_peft)
app.command("import-peft")(import_peft)
app.command("push")(push)
