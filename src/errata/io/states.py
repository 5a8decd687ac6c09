"""Saved states, looked up by the hash of their content.

A patch that needs a shared state (a knowledge memory, a trained network) names it by that hash and
holds no copy. States are searched in ERRATA_HOME/states, then among those of the bundled models;
their files are memory-mapped and read once.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from errata.core import files
from errata.core.errors import BadOutput, DiskFull, InUse, MissingState, Notice, UserError
from errata.core.files import versions
from errata.core.state import State
from errata.core.types import Case, digest, to_json

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone


def home() -> Path:
    """ERRATA_HOME, or a folder in the user's cache."""
    folder = os.environ.get("ERRATA_HOME")
    if folder:
        return Path(folder)
    try:
        return Path.home() / ".cache" / "errata"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"errata-{os.getuid()}"


def folder_of(digest: str) -> Path:
    """The folder in ERRATA_HOME for the state with this hash; it need not exist."""
    return home() / "states" / digest[:16]


#: What may be in a folder that a state is written to: a state, its training, its time.
_OF_A_STATE = (
    "state.json",
    "state.safetensors",
    "README.md",
    "timing.json",
    "training.safetensors",
)


def check_out(folder: Path, *, force: bool) -> None:
    """Raises BadOutput unless a state can be written to the folder; before any work.

    A finished state is replaced only with `force`; an unfinished training is resumed.
    """
    files.check_folder(folder)
    if folder.is_dir():
        files.finish_folder(folder)
    names = files.visible(folder)
    if any(name not in _OF_A_STATE for name in names):
        raise BadOutput(f"{folder} is not empty and holds no state. Choose another --out.")
    if "state.json" in names and not force:
        raise BadOutput(
            f"{folder} holds a finished state. Use it with --state {folder}, give --force to "
            "replace it, or choose another --out."
        )


def check_home() -> None:
    """Raises BadOutput if states cannot be kept in ERRATA_HOME."""
    try:
        files.check_folder(home() / "states")
    except (BadOutput, DiskFull):
        raise BadOutput(
            f"ERRATA_HOME ({home()}) cannot be written. Give --out DIR for the state, or set "
            "ERRATA_HOME to a folder of yours."
        ) from None


def store_if_possible(state: State) -> Path | None:
    """As `store`; None, with a warning, if ERRATA_HOME cannot be written."""
    try:
        return store(state)
    except (OSError, BadOutput, DiskFull, InUse):
        warn_home()
        return None


def warn_home() -> None:
    """Says that nothing is kept in ERRATA_HOME."""
    warnings.warn(
        f"ERRATA_HOME ({home()}) cannot be written: what is collected is kept in memory only, and "
        "is collected again next time.",
        Notice,
        stacklevel=3,
    )


def store(state: State) -> Path:
    """Saves the state in ERRATA_HOME, unless it is there undamaged; returns its folder."""
    folder = folder_of(state.digest())
    try:
        there = State.load(folder).digest() == state.digest()
    except MissingState:
        there = False
    if not there:
        state.save(folder)
    return folder


class Preparable(Protocol):
    """What `prepare_cached` asks of an editor or a scope."""

    plugin_kind: ClassVar[str]
    name: ClassVar[str]
    state_name: ClassVar[str]
    keeps_state: ClassVar[bool]

    def settings_of_state(self) -> dict[str, Any]: ...
    def prepare(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int = 0
    ) -> State | None: ...


def prepare_cached(
    editor: Preparable, backbone: Backbone, cases: Sequence[Case], *, seed: int
) -> State | None:
    """`editor.prepare`; an editor with `keeps_state` reuses the state of an equal earlier call.

    Equal: model, prompt style, the settings that the state depends on, cases, seed and versions.
    """
    if not editor.keeps_state:
        return editor.prepare(backbone, cases, seed=seed)
    key = {
        "state": editor.state_name or editor.name,
        **({} if editor.plugin_kind == "editors" else {"kind": editor.plugin_kind}),
        "settings": editor.settings_of_state(),
        "model": backbone.fingerprint(),
        "style": backbone.style,
        "cases": digest([to_json(c) for c in cases]),
        "seed": seed,
        "versions": versions(),
    }
    record = home() / "learnt" / f"{digest(key)[:16]}.json"
    earlier = _head_of(record)
    if earlier is not None:
        try:
            return find(str(earlier.get("digest")))
        except MissingState:
            pass
    state = editor.prepare(backbone, cases, seed=seed)
    if state is not None and store_if_possible(state) is not None:
        with suppress(BadOutput, DiskFull):
            files.write_json(record, {"digest": state.digest()})
    return state


def link(folder: Path, digest: str) -> None:
    """Makes `find` find a state in the user's `folder`, by a link, if ERRATA_HOME is writable."""
    at = folder_of(digest)
    if (_head(at) or {}).get("digest") == digest or at.resolve() == folder.resolve():
        return
    try:
        if at.is_symlink():  # its target is gone or is another state now
            at.unlink()
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(folder.resolve(), target_is_directory=True)
    except (OSError, DiskFull):
        return


def find(digest: str) -> State:
    """The state with this hash. Raises MissingState."""
    for folder in (folder_of(digest), *_shipped()):
        head = _head(folder)
        if head is not None and head.get("digest") == digest:
            state = _read(folder.resolve())
            if state.digest() == digest:
                return state
    raise MissingState(
        f"a patch needs the prepared state {digest[:16]}, which is neither in {home() / 'states'} "
        "nor among the bundled ones. Put its folder there under that name, or give the folder once "
        "with --state when you edit."
    )


def is_shipped(digest: str) -> bool:
    """Whether the state with this hash comes with errata."""
    heads = [head for folder in _shipped() if (head := _head(folder)) is not None]
    return any(head.get("digest") == digest for head in heads)


def shipped(editor: str, is_model: Callable[[str], bool]) -> Iterator[State]:
    """The states of an editor that ship with errata, for the model with one of the fingerprints."""
    for folder in _shipped():
        head = _head(folder)
        ours = head is not None and head.get("editor") == editor
        if ours and head and is_model(str(head.get("fingerprint"))):
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
