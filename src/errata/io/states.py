"""States on disk, found again by the hash of their content.

A patch that works from a shared state (a knowledge memory, a trained network) names it by that hash
instead of holding a copy. States are looked for in ERRATA_HOME/states, then among those that come
with the bundled models; they are memory-mapped and read once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core import files
from errata.core.errors import DiskFull, MissingState, UserError
from errata.core.files import versions
from errata.core.state import State
from errata.core.types import Case, digest, to_json

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone


def home() -> Path:
    """ERRATA_HOME, or a folder in the user's cache."""
    given = os.environ.get("ERRATA_HOME")
    return Path(given) if given else Path.home() / ".cache" / "errata"


def place(digest: str) -> Path:
    """Where ERRATA_HOME keeps the state with this hash."""
    return home() / "states" / digest[:16]


def keep(state: State) -> Path:
    """The state's folder in ERRATA_HOME, written unless it is there."""
    folder = place(state.digest())
    if not (folder / "state.json").is_file():
        state.save(folder)
    return folder


def learnt(editor: Editor, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
    """`editor.prepare`; where it says so, what that gave earlier for all that it depends on."""
    if not editor.keeps_state:
        return editor.prepare(backbone, cases, seed=seed)
    what = {
        "state": editor.state_name or editor.name,
        "settings": editor.summary["config"],
        "model": backbone.fingerprint(),
        "style": backbone.style,
        "cases": digest([to_json(c) for c in cases]),
        "seed": seed,
        "versions": versions(),
    }
    what["settings"] = {k: what["settings"][k] for k in editor.state_settings}
    note = home() / "learnt" / f"{digest(what)[:16]}.json"
    known = _head_of(note)
    if known is not None:
        try:
            return find(str(known.get("digest")))
        except MissingState:
            pass
    state = editor.prepare(backbone, cases, seed=seed)
    if state is not None:
        try:
            keep(state)
            files.write_json(note, {"digest": state.digest()})
        except (OSError, DiskFull):
            pass  # a cache that cannot be written is done without
    return state


def link(folder: Path, digest: str) -> None:
    """Lets `find` see a state in a folder of the user's. A home that cannot be written is left."""
    at = place(digest)
    if (_head(at) or {}).get("digest") == digest or at.resolve() == folder.resolve():
        return
    try:
        if at.is_symlink():  # what it leads to is gone, or another state by now
            at.unlink()
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(folder.resolve(), target_is_directory=True)
    except (OSError, DiskFull):
        return


def find(digest: str) -> State:
    """The state with this hash. Raises MissingState."""
    for folder in (place(digest), *_shipped()):
        head = _head(folder)
        if head is not None and head.get("digest") == digest:
            state = _read(folder.resolve())
            if state.digest() == digest:
                return state
    raise MissingState(
        f"a patch needs the prepared state {digest[:16]}, which is neither in {home() / 'states'} "
        "nor among the bundled ones. Put its folder there under that name, or name the folder once "
        "with --state when editing."
    )


def shipped(editor: str, fingerprint: str) -> Iterator[State]:
    """The states of an editor that come with the bundled models, for the model given."""
    for folder in _shipped():
        head = _head(folder)
        if head and head.get("editor") == editor and head.get("fingerprint") == fingerprint:
            yield _read(folder.resolve())


def _shipped() -> list[Path]:
    assets = Path(str(resources.files("errata") / "assets"))
    return sorted(assets.glob("*/states/*")) if assets.is_dir() else []


def _head(folder: Path) -> dict[str, Any] | None:
    return _head_of(folder / "state.json")


def _head_of(path: Path) -> dict[str, Any] | None:
    try:
        head = files.read_json(path)
    except (OSError, ValueError, UserError):
        return None
    return head if isinstance(head, dict) else None


@lru_cache(maxsize=8)
def _read(folder: Path) -> State:
    return State.load(folder)
