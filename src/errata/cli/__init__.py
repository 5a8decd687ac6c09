"""The command line: parses, calls the library, prints. Slow imports are inside the commands.

Exit codes: 0 done; 2 an error that the user can fix (one line on stderr); 3 done, but an edit does
not hold (one line on stderr); 1 a bug of errata; 130 interrupted; 141 the reader of a pipe has
ended.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, get_type_hints

import typer

from errata.cli import (
    analyze,
    ask,
    bench,
    convert,
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
    serve,
    stats,
    ui,
)
from errata.cli.shared.printing import finish_printing, printable, readable_warnings, say
from errata.core import registry
from errata.core.errors import BadSpec, UserError, one_line

app = typer.Typer(
    name="errata",
    help="Correct what a trained model knows, measure it, and undo it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        import errata

        say(f"errata {errata.__version__}")
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
app.command("merge")(results.merge)
app.command("score")(results.score)
app.command("judge")(judge.judge)
app.command("results")(results.results)
app.command("report")(results.report)
app.command("compare")(results.compare)
app.command("analyze")(analyze.analyze)
app.add_typer(patch.app, name="patch")
app.add_typer(data.app, name="data")
app.add_typer(convert.app, name="convert")
app.command("doctor")(doctor.doctor)
app.command("draw")(draw.draw)
app.command("serve")(serve.serve)
app.command("ui")(ui.ui)
app.command("check")(plugins.check)


def _evaluate_annotations(commands: typer.Typer) -> None:
    """Once; typer would evaluate the text of each annotation four times, which takes a while."""
    for command in commands.registered_commands:
        if command.callback is not None:
            hints = get_type_hints(command.callback, include_extras=True)
            command.callback.__annotations__ = hints
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _evaluate_annotations(group.typer_instance)


_evaluate_annotations(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    rest = [a for a in words[:end] if a != "--debug"] + words[end:]
    try:
        check_words(rest)
        try:
            with nullcontext() if debug or sys.warnoptions else readable_warnings():
                app(args=rest, prog_name="errata")
        finally:
            finish_printing()
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
        theirs = _not_ours(e)
        _fail(
            f"errata: {theirs}"
            if theirs
            else f"errata: this is a bug: {type(e).__name__}: {one_line(e)}. "
            "Please report it with the output of the same command and --debug."
        )
        sys.exit(2 if theirs else 1)


def check_words(words: Sequence[str]) -> None:
    """Raises BadSpec for an argument that is no text: its bytes are not UTF-8, or it has a NUL."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise BadSpec(
                f"the argument {word!r} is not UTF-8. Write it in UTF-8; rename a file whose name "
                "is in another encoding."
            ) from None
        if "\0" in word:
            raise BadSpec(f"the argument {word!r} holds a NUL character. Leave it out.")


def _not_ours(error: Exception) -> str:
    """One line for what is no bug of errata: a plug-in, the system or the memory; "" for a bug."""
    if plugin := registry.blamed(error):
        return (
            f"{plugin} failed: {type(error).__name__}: {one_line(error)}. Report it to its authors "
            "with the output of --debug, or remove the package."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}. Check the path and its permissions."
    if isinstance(error, MemoryError):
        return "there is not enough memory. Close other programs, or choose smaller --rows."
    return ""


def _fail(line: str) -> None:
    color = False if "NO_COLOR" in os.environ else None
    typer.secho(printable(line), fg=typer.colors.RED, err=True, color=color)
