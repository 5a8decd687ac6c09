"""Options that several commands have, what they are parsed into, and printing."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from errata.core.errors import BadSpec, MissingState

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.state import State
    from errata.core.types import Image

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
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value
    return settings


def make_editor(name: str, preset: str | None, pairs: Sequence[str] | None) -> Editor:
    """The editor. Called before a model is loaded, so that a wrong setting is reported at once."""
    from errata import editor

    return editor(name, preset=preset, **parse_settings(pairs))


def load_state(text: str | None, editor: Editor) -> State | None:
    """The state in a folder, or the one in ERRATA_HOME by (the beginning of) its hash."""
    if text is None:
        return None
    from errata.core.state import State
    from errata.io.states import home, link

    folder = Path(text)
    if not folder.is_dir() and re.fullmatch(r"[0-9a-f]{8,64}", text):
        folders = [p for p in sorted((home() / "states").glob("*")) if _same_hash(p.name, text)]
        if len(folders) != 1:
            what = "no state" if not folders else f"{len(folders)} states"
            raise MissingState(
                f"{what} with hash {text} in {home() / 'states'}. Give the folder, or run "
                f"`errata prepare BACKBONE --editor {editor.name} --benchmark B --out DIR`."
            )
        folder = folders[0]
    if not folder.is_dir():
        raise MissingState(
            f"there is no state in {folder}. Run `errata prepare BACKBONE --editor {editor.name} "
            f"--benchmark B --out {folder}`."
        )
    state = State.load(folder)
    link(folder, state.digest())
    if state.editor != (editor.state_name or editor.name):
        raise BadSpec(
            f"{folder} holds a state of editor '{state.editor}', not of '{editor.name}'. Give "
            f"another --state, or --editor {state.editor}."
        )
    return state


def _same_hash(folder: str, text: str) -> bool:
    return folder.startswith(text) or (len(folder) >= 8 and text.startswith(folder))


def referenced(image: str | None) -> Image | None:
    """The image with its sha256, from a path or URI. Raises BadImage if it cannot be read."""
    if image is None:
        return None
    from errata.core.types import Image
    from errata.io.images import hash_image

    plain = Image(image)
    return Image(image, hash_image(plain))


def fall_short(line: str) -> NoReturn:
    """Ends the command with exit code 3: it is done, but an edit does not hold."""
    color = False if "NO_COLOR" in os.environ else None
    typer.secho(f"errata: {' '.join(line.split())}", fg=typer.colors.RED, err=True, color=color)
    raise typer.Exit(3)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1, default=str))


def print_facts(facts: Mapping[str, Any], indent: int = 0) -> None:
    """Prints nested facts as indented lines."""
    for key, value in facts.items():
        margin = "  " * indent
        if isinstance(value, Mapping) and value:
            print(f"{margin}{key}:")
            print_facts(value, indent + 1)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            print(f"{margin}{key}:")
            for item in value:
                print_facts(item, indent + 1)
        else:
            print(f"{margin}{key}: {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_as_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "none"
    return "none" if value is None else str(value)


def terminal_width() -> int | None:
    """None on a terminal (rich finds the width); 160 in a pipe, so that lines do not break."""
    return None if sys.stdout.isatty() else 160


def console() -> Any:
    from rich.console import Console

    return Console(width=terminal_width(), highlight=False)
