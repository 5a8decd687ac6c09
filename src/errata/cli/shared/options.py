"""Options that several commands have, what they are parsed into, and printing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared.printing import say
from errata.core.errors import BadSpec, MissingState

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.scope import Scope
    from errata.core.state import State

EditorName = Annotated[str, typer.Option("--editor", help="See `errata list editors`.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="A setting of the editor; repeatable."),
]
Preset = Annotated[str | None, typer.Option(help="A named set of settings, such as `paper`.")]
StateDir = Annotated[
    str | None,
    typer.Option("--state", metavar="DIR", help="A prepared state: its folder or its hash."),
]
ScopeName = Annotated[
    str | None,
    typer.Option("--scope", help="Which questions an edit applies to: see `errata list scopes`."),
]
ScopeSettings = Annotated[
    list[str] | None,
    typer.Option("--scope-set", metavar="K=V", help="A setting of the scope; repeatable."),
]
ScopeState = Annotated[
    str | None,
    typer.Option("--scope-state", metavar="DIR", help="The scope's state: its folder or hash."),
]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")]
RowsOption = Annotated[
    int, typer.Option("--rows", min=1, help="Batch size in edits; does not change results.")
]
Root = Annotated[
    Path | None, typer.Option(help="Folder of the benchmark's files, if it needs any.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of text.")]


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    assets = files("errata") / "assets"
    if not assets.is_dir():
        return []
    return sorted(f.name for f in assets.iterdir() if (f / "config.json").is_file())


def quiet() -> None:
    """Turns off what libraries log for programmers, and their progress bars without a terminal.

    TRANSFORMERS_VERBOSITY, if it is set, decides about the logs.
    """
    import logging

    from transformers.utils import logging as of_transformers

    if not sys.stderr.isatty():
        of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        for library in ("transformers", "diffusers", "huggingface_hub", "accelerate"):
            logging.getLogger(library).setLevel(logging.ERROR)


def parse_settings(pairs: Sequence[str] | None, option: str = "--set") -> dict[str, Any]:
    """The values of `k=v` texts: parsed as JSON if possible, else the text itself."""
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadSpec(f"cannot read {option} '{pair}'. Write {option} name=value.")
        if key.strip() in settings:
            raise BadSpec(f"{option} {key.strip()} is given twice. Give it once.")
        settings[key.strip()] = _value(value, f"{option} {key.strip()}")
    return settings


def _value(text: str, where: str) -> Any:
    """JSON, or the text itself where it is none. Raises BadSpec for JSON that cannot be used."""
    from errata.core.formats.json_value import parse_json

    try:
        return parse_json(text)
    except ValueError as e:
        if "not finite" in str(e) or "nested" in str(e) or "digits" in str(e):
            raise BadSpec(f"{where}: {e}. Give another value.") from None
        return text


def make_editor(name: str, preset: str | None, pairs: Sequence[str] | None) -> Editor:
    """The editor. Called before a model is loaded, so that a wrong setting is reported at once."""
    from errata import editor

    return editor(name, preset=preset, **parse_settings(pairs))


def make_scope(
    name: str | None, pairs: Sequence[str] | None = None, state: str | None = None
) -> Scope | None:
    """The scope, with its state; None without a name."""
    from errata.core.model.scope import scope_of

    if name is None:
        if pairs or state is not None:
            raise BadSpec("--scope-set and --scope-state belong to a scope. Name it with --scope.")
        return None
    scope = scope_of(name, **parse_settings(pairs, "--scope-set"))
    if state is None:
        return scope
    made_by = f"--editor {scope.state_name}" if scope.state_name else f"--scope {name}"
    return scope.with_state(_stored_state(state, made_by))


def behind(editor: Editor, scope: Scope | None) -> Editor:
    """The editor behind a scope; the editor itself without one."""
    from errata.algorithms.scoped import scoped

    return editor if scope is None else scoped(editor, scope)


def load_state(text: str | None, editor: Editor) -> State | None:
    """The state in a folder, or the one in ERRATA_HOME by (the beginning of) its hash."""
    if text is None:
        return None
    state = _stored_state(text, f"--editor {editor.name}")
    if state.editor != (editor.state_name or editor.name):
        raise BadSpec(
            f"{text} holds a state of editor '{state.editor}', not of '{editor.name}'. Give "
            f"another --state, or --editor {state.editor}."
        )
    return state


def _stored_state(text: str, made_by: str) -> State:
    """The state with a folder or hash. made_by: the options of `errata prepare` for it."""
    from errata.core.files import is_dir
    from errata.core.state import State
    from errata.io.states import home, link

    folder = Path(text)
    if not is_dir(folder) and re.fullmatch(r"[0-9a-f]{8,64}", text):
        folders = [p for p in sorted((home() / "states").glob("*")) if _same_hash(p.name, text)]
        if len(folders) != 1:
            what = "no state" if not folders else f"{len(folders)} states"
            raise MissingState(
                f"{what} with hash {text} in {home() / 'states'}. Give the folder, or run "
                f"`errata prepare BACKBONE {made_by} --benchmark B --out DIR`."
            )
        folder = folders[0]
    if not is_dir(folder):
        raise MissingState(
            f"there is no state in {folder}. Run `errata prepare BACKBONE {made_by} --benchmark B "
            f"--out {folder}`."
        )
    state = State.load(folder)
    link(folder, state.digest())
    return state


def _same_hash(folder: str, text: str) -> bool:
    return folder.startswith(text) or (len(folder) >= 8 and text.startswith(folder))


def print_facts(facts: Mapping[str, Any], indent: int = 0) -> None:
    """Prints nested facts as indented lines."""
    for key, value in facts.items():
        margin = "  " * indent
        if isinstance(value, Mapping) and value:
            say(f"{margin}{key}:")
            print_facts(value, indent + 1)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            say(f"{margin}{key}:")
            for item in value:
                print_facts(item, indent + 1)
        elif isinstance(value, (list, tuple)) and any(" " in str(v) for v in value):
            say(f"{margin}{key}:")
            for item in value:
                say(f"{margin}  {_as_text(item)}")
        else:
            say(f"{margin}{key}: {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_as_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "none"
    return "none" if value is None else str(value)
