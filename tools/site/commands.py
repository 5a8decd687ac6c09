"""The page of commands, from the command line itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from tools.site.formatted import code, table


def page() -> str:
    """Every command with what it says of itself, its arguments and options."""
    import typer

    from errata.cli import app

    parts = [
        "# Commands",
        "What `errata COMMAND --help` prints. Exit codes: 0 done; 2 a mistake in the input, with "
        "one line that says what to do; 3 done, but an edit does not hold; 1 a bug of errata; 130 "
        "interrupted. `--debug` anywhere shows the traceback of an error.",
    ]
    parts += _described("errata", typer.main.get_command(app))
    return "\n\n".join(parts) + "\n"


def _described(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        for word, one in inner.items():
            yield from _described(f"{name} {word}", one)
        return
    yield f"## {name}"
    yield _text(command.help)
    rows = [_row(p) for p in command.params if p.name != "help" and not getattr(p, "hidden", 0)]
    if rows:
        yield table(["argument or option", "default", "meaning"], rows)


def _text(words: str | None) -> str:
    return inspect.cleandoc(words or "").replace("<", "&lt;").replace("\b", "")


def _row(param: Any) -> list[str]:
    arguments = param.param_type_name == "argument"
    named = (param.metavar or param.name.upper()) if arguments else ", ".join(param.opts)
    default = param.default
    shown = (
        "" if default is None or callable(default) or default in (False, (), "") else code(default)
    )
    return [code(named), "required" if param.required else shown, _text(getattr(param, "help", ""))]
