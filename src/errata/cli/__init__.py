"""The command line: parses, calls the library, prints. Slow imports are inside the commands.

Exit codes: 0 done; 2 an error that the user can fix (one line on stderr); 3 done, but an edit does
not hold (one line on stderr); 1 a bug of errata; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated

import typer

from errata.cli import (
    analyze,
    ask,
    bench,
    data,
    demo,
    doctor,
    draw,
    edit,
    judge,
    patch,
    plugins,
    prepare,
    results,
    stats,
)
from errata.core.errors import Notice, UserError

app = typer.Typer(
    name="errata",
    help="Correct what a trained multimodal model knows, measure it, and undo it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        import errata

        print(f"errata {errata.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere.")
    ] = False,
) -> None:
    pass


app.command("demo")(demo.demo)
app.command("list")(plugins.list_names)
app.command("show")(plugins.show)
app.command("edit")(edit.edit)
app.command("ask")(ask.ask)
app.command("prepare")(prepare.prepare)
app.command("stats")(stats.stats)
app.command("bench")(bench.bench)
app.command("score")(results.score)
app.command("judge")(judge.judge)
app.command("results")(results.results)
app.command("report")(results.report)
app.command("compare")(results.compare)
app.command("analyze")(analyze.analyze)
app.add_typer(patch.app, name="patch")
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)
app.command("draw")(draw.draw)
app.command("check")(plugins.check)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    rest = [a for a in words[:end] if a != "--debug"] + words[end:]
    try:
        with nullcontext() if debug or sys.warnoptions else only_notices():
            app(args=rest, prog_name="errata")
    except UserError as e:
        if debug:
            traceback.print_exc()
        _fail(f"errata: {e}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if debug:
            traceback.print_exc()
        reason = " ".join(str(e).split())[:300]
        _fail(
            f"errata: this is a bug: {type(e).__name__}: {reason} "
            "Please report it with the output of the same command and --debug."
        )
        sys.exit(1)


@contextmanager
def only_notices() -> Iterator[None]:
    """Prints errata's own warnings as one line each, and none of the libraries below it.

    What a library tells its programmers is no news to a user. `--debug` and `python -W` show it.
    """
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, Notice):
            typer.secho(f"errata: {' '.join(str(message).split())}", err=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _fail(line: str) -> None:
    color = False if "NO_COLOR" in os.environ else None
    typer.secho(line, fg=typer.colors.RED, err=True, color=color)
