"""`serve`: answer questions over the network, with a patch per request."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from errata.cli.serve import options as own
from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.patches import heads_in
from errata.cli.shared.printing import say
from errata.core.errors import BadOutput, BadSpec, MissingExtra

if TYPE_CHECKING:
    from errata.serve.settings import Access

TOKEN, ADMIN = "ERRATA_SERVE_TOKEN", "ERRATA_SERVE_ADMIN_TOKEN"
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@takes_model()
def serve(
    model: ModelOptions,
    patch: own.Patches = None,
    patches: own.Folder = None,
    served_name: own.ServedName = None,
    host: own.Host = "127.0.0.1",
    port: own.Port = 8000,
    image_host: own.ImageHosts = None,
    max_tokens: own.Tokens = 512,
    max_prompt_tokens: own.PromptTokens = None,
    max_body: own.BodyMib = 20,
    max_pixels: own.Pixels = 16_000_000,
    max_images: own.Images = 4,
    max_queue: own.Queue = 128,
    max_batch: own.BatchRows = 32,
    share_unedited: own.ShareUnedited = False,
    editor: own.ForEdits = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    drain: own.Drain = 60,
    log_prompts: own.LogPrompts = False,
    check: own.Check = False,
) -> None:
    """Answer questions over HTTP in OpenAI's protocol, with a patch per request.

    The environment variables ERRATA_SERVE_TOKEN and ERRATA_SERVE_ADMIN_TOKEN hold the tokens for
    questions and for edits; without the first only this machine is answered, without the second
    nobody may edit. See docs/serve.md.
    """
    _check_installed()
    access = _access(host, image_host or ())
    if editor is None and (preset is not None or settings or state is not None):
        raise BadSpec("--preset, --set and --state belong to an editor. Name it with --editor.")
    ed = None if editor is None else options.make_editor(editor, preset, settings)
    prepared = None if ed is None else options.load_state(state, ed)
    given = _given(patch or ())
    if patches is not None and not patches.is_dir():
        raise BadOutput(f"--patches: there is no folder {patches}. Make it first.")
    if served_name is not None:
        _check_served(served_name)
    from errata.io.patch_folder import read_head
    from errata.serve import run
    from errata.serve.listening import listening
    from errata.serve.logs import EventLog
    from errata.serve.service import Service, Setup
    from errata.serve.settings import MIB, Limits

    bb = model.load([*(read_head(f) for f in given.values()), *heads_in(patches)])
    limits = Limits(
        body=max_body * MIB, image=max_body * MIB, images=max_images, pixels=max_pixels,
        prompt_tokens=max_prompt_tokens, tokens=max_tokens, queue=max_queue, batch=max_batch,
    )  # fmt: skip
    setup = Setup(
        name=_check_served(bb.name if served_name is None else served_name), given=given,
        folder=patches, access=access, limits=limits, share_unedited=share_unedited, editor=ed,
        state=prepared,
    )  # fmt: skip
    log = EventLog(prompts=log_prompts)
    if check:
        service = Service(bb, setup, lambda events: None, log)
        for left_out, why in service.catalogue.load_all().items():
            say(f"left out: {left_out}: {why}", err=True)
        say("\n".join(service.catalogue.models()))
        return
    if not run.serve(bb, setup, listening(host, port), log=log, drain=drain):
        raise typer.Exit(1)


def _check_installed() -> None:
    """Raises MissingExtra."""
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise MissingExtra(f"serve needs {lacking[0]}: pip install 'errata[serve]'.")


def _check_served(name: str) -> str:
    """What requests call the model. Raises BadSpec."""
    if "+" in name or not name.strip():
        raise BadSpec(f"requests cannot call a model {name!r}. Give --served-name without a '+'.")
    return name


def _access(host: str, image_hosts: tuple[str, ...] | list[str]) -> Access:
    """The tokens, from the environment. Raises BadSpec."""
    from errata.serve.listening import is_this_machine
    from errata.serve.settings import Access

    token, admin = (os.environ.get(name, "").strip() or None for name in (TOKEN, ADMIN))
    for name, value in ((TOKEN, token), (ADMIN, admin)):
        if value is not None and (len(value) < 16 or not value.isascii() or " " in value):
            raise BadSpec(f"{name} holds no token: give at least 16 ASCII characters, no space.")
    if token is not None and token == admin:
        raise BadSpec(f"{TOKEN} and {ADMIN} are equal. Give two different tokens.")
    if token is None and not is_this_machine(host):
        raise BadSpec(f"--host {host} would answer everybody. Set {TOKEN}, or listen on 127.0.0.1.")
    for name in image_hosts:
        if "/" in name or name != name.lower() or not name.strip():
            raise BadSpec(f"--image-host {name} is no host. Give a name such as img.example.org.")
    return Access(token=token, admin=admin, image_hosts=frozenset(image_hosts))


def _given(pairs: list[str] | tuple[()]) -> dict[str, Path]:
    """name -> folder, of `NAME=DIR`. Raises BadSpec."""
    from errata.serve.catalogue import check_name

    given: dict[str, Path] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not folder:
            raise BadSpec(f"cannot read --patch '{pair}'. Write --patch NAME=DIR.")
        if check_name(name) in given:
            raise BadSpec(f"--patch {name} is given twice. Give each patch its own name.")
        given[name] = Path(folder)
    return given
