"""`convert`: make a folder of transformers from a model that is published in another form."""

from __future__ import annotations

import typer

from errata.cli.convert import minigpt4

app = typer.Typer(
    help="Make a model's folder from what it is published as.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Keeps the name of a command, also where there is one only."""


app.command("minigpt4")(minigpt4.convert)
