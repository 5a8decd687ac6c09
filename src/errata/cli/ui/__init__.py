"""`ui`: a page to make, see, compare, save and take back edits."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.patches import heads_in
from errata.cli.shared.printing import say
from errata.core.errors import BadOutput, BadSpec, MissingExtra

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.model.scope import Scope
    from errata.core.state import State

PASSWORD = "ERRATA_UI_PASSWORD"
Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where patches are saved to and loaded from."),
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")]
ImageMib = Annotated[int, typer.Option(min=1, help="Most MiB of a picture.")]
Pixels = Annotated[int, typer.Option(min=1, help="Most pixels of a picture.")]
Method = Annotated[
    str | None, typer.Option(help="Makes the edits where none is chosen. Default: one that fits.")
]


@takes_model(draws=True)
def ui(
    model: ModelOptions,
    patches: Folder = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    max_image: ImageMib = 10,
    max_pixels: Pixels = 16_000_000,
    editor: Method = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
) -> None:
    """Open a page to correct a model in: ask, correct, see what changed, save, take back.

    Only this machine is answered. For another --host, the environment variable ERRATA_UI_PASSWORD
    holds the password of the user `errata`. See docs/ui.md.
    """
    if find_spec("gradio") is None:
        raise MissingExtra("ui needs gradio: pip install 'errata[ui]'.")
    password = _password(host)
    if editor is None and (preset is not None or settings or state is not None):
        raise BadSpec("--preset, --set and --state belong to an editor. Name it with --editor.")
    ed = None if editor is None else options.make_editor(editor, preset, settings)
    prepared = None if ed is None else options.load_state(state, ed)
    if patches is not None and not patches.is_dir():
        raise BadOutput(f"--patches: there is no folder {patches}. Make it first.")
    from errata.serve.listening import listening
    from errata.serve.settings import MIB, Limits
    from errata.ui import run
    from errata.ui.workbench import Workbench

    where = listening(host, port)
    bb = model.load(heads_in(patches))
    limits = Limits(image=max_image * MIB, pixels=max_pixels)
    workbench = Workbench(
        bb, folder=patches, limits=limits, editor=ed, state=prepared,
        collect=lambda wanted: _collected(bb, wanted),
    )  # fmt: skip
    address = f"[{host}]" if ":" in host else host
    say(f"{bb.name} can be corrected at http://{address}:{where.getsockname()[1]} (end: Ctrl-C)")
    run.serve(workbench, where, host=host, password=password)


def _collected(bb: Backbone, wanted: Editor | Scope) -> State | None:
    from errata.cli.edit import collect

    return collect(bb, wanted, None, None, 0)


def _password(host: str) -> str | None:
    """From the environment. Raises BadSpec."""
    from errata.serve.listening import is_this_machine

    password = os.environ.get(PASSWORD, "").strip() or None
    if password is not None and len(password) < 12:
        raise BadSpec(f"{PASSWORD} holds a short password: give at least 12 characters.")
    if password is None and not is_this_machine(host):
        raise BadSpec(
            f"--host {host} would answer everybody. Set {PASSWORD}, or listen on 127.0.0.1."
        )
    return password
