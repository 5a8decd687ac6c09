"""Everything that commands print goes through here.

Text from patches, files and models may hold control characters, which can rewrite a terminal or
hide what is written. They are shown as escapes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import typer

from errata.core.errors import BadOutput, Notice

#: Controls but tab and line feed; line separators; direction overrides; halves of surrogate pairs.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
#: What a shell reports for a program that a closed pipe stopped.
CLOSED_PIPE = 141


def printable(text: str) -> str:
    """The text with control characters written out as escapes."""
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def say(text: object = "", *, err: bool = False) -> None:
    """Prints one text and a line feed. Raises BadOutput where nothing can be written."""
    file = sys.stderr if err else sys.stdout
    with_errors(file, lambda: print(printable(str(text)), file=file, flush=err))


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    say(_CONTROLS.sub(lambda m: f"\\u{ord(m[0]):04x}", text))


def show_table(table: Any) -> None:
    """Prints a table of rich: to a pipe 160 columns wide, so that lines do not break."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    with_errors(sys.stdout, lambda: console.print(_Printable(table)))


class _Printable:
    """A renderable of rich whose text is printable."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for text, style, control in console.render(self.inner, options):
            yield Segment(printable(text), style, control)


def with_errors(file: TextIO, write: Callable[[], Any]) -> None:
    """Calls `write`. A closed pipe ends the program; a full device raises BadOutput."""
    try:
        write()
    except BrokenPipeError:
        _drop(file)
        sys.exit(CLOSED_PIPE)
    except (OSError, ValueError) as e:  # ValueError: the stream was closed
        if isinstance(e, OSError) and e.errno == errno.EPIPE:
            sys.exit(CLOSED_PIPE)
        _drop(file)
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise BadOutput(f"cannot print: {reason}. Give another place for the output.") from None


def finish_printing() -> None:
    """Writes what is still buffered. Raises BadOutput."""
    if sys.stdout is not None and not sys.stdout.closed:
        with_errors(sys.stdout, sys.stdout.flush)


def _drop(file: TextIO) -> None:
    """Lets what is buffered go nowhere, so that the end of the program says nothing of it."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, file.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


@contextmanager
def readable_warnings() -> Iterator[None]:
    """Prints errata's own warnings as one line each, and none of the libraries below it.

    What a library tells its programmers is no news to a user. `--debug` and `python -W` show it.
    """
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, Notice):
            say(f"errata: {' '.join(str(message).split())}", err=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def fall_short(line: str) -> NoReturn:
    """Ends the command with exit code 3: it is done, but an edit does not hold."""
    color = False if "NO_COLOR" in os.environ else None
    text = printable(f"errata: {' '.join(line.split())}")
    typer.secho(text, fg=typer.colors.RED, err=True, color=color)
    raise typer.Exit(3)
