"""The state of an editor: what it prepares once and uses for every edit.

For example a trained network, statistics, or a memory. A state is a value: JSON-ready `meta` and
named tensors, saved as `state.json`, `state.safetensors` and a card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.core import files
from errata.core.errors import BadSpec, MissingState
from errata.core.locks import SHORT, locked

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True)
class State:
    """What an editor keeps between edits: a trained network, statistics, a memory. Immutable.

    `meta` is JSON-ready; `tensors` are saved as safetensors. `digest` identifies the content.
    `fingerprint`, `style` and `settings` say which model, which style of prompts and which settings
    it was made for. A state that
    an editor extended while it edited has the digest of the prepared state as its `origin`.
    """

    editor: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    style: str = ""

    def digest(self) -> str:
        return self._digest

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix`, under their names without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @cached_property
    def views(self) -> dict[str, Any]:
        """Objects built from the tensors once, shared by all users of the state; not saved."""
        return {}

    def grown(self, tensors: Mapping[str, Tensor]) -> State:
        """A copy with more or other tensors; its `origin` is the prepared state."""
        after = replace(
            self, tensors={**self.tensors, **tensors}, origin=self.origin or self.digest()
        )
        after.views.update(self.views)
        return after

    @cached_property
    def _digest(self) -> str:
        h = hashlib.sha256(files.dumps(dict(self.meta)).encode())
        for name in sorted(self.tensors):
            h.update(name.encode())
            flat = self.tensors[name].detach().cpu().contiguous().flatten()
            h.update(flat.view(torch.uint8).numpy().tobytes())
        return h.hexdigest()

    def save(self, folder: files.FilePath) -> None:
        """Writes the state's files, all or none; other files of the folder are kept."""
        folder = Path(folder)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        head = {
            "editor": self.editor,
            "meta": dict(self.meta),
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "origin": self.origin,
            "digest": self.digest(),
            "style": self.style,
        }
        contents = {
            "state.safetensors": to_safetensors(tensors),
            "README.md": _card(self).encode(),
            "state.json": files.json_bytes(head),
        }
        with locked(folder, wait=SHORT):
            files.write_folder(folder, contents)

    @classmethod
    def load(cls, folder: files.FilePath) -> State:
        """Reads a state and checks that it is the one that was saved. Raises MissingState."""
        folder = Path(folder)
        with suppress(OSError, ValueError):
            files.finish_folder(folder)
        if not files.exists(folder / "state.json"):
            raise MissingState(f"{folder} holds no editor state. `errata prepare` writes one.")
        head = files.read_as(StateHead, folder / "state.json", MissingState)
        path = folder / "state.safetensors"
        try:
            tensors = load_file(path)  # memory-mapped
        except (OSError, SafetensorError, ValueError) as e:
            raise MissingState(f"{path} {_problem(e)}. {_RESTORE}") from None
        state = cls(
            head.editor, head.meta, tensors, head.fingerprint, head.settings, head.origin,
            head.style,
        )  # fmt: skip
        try:
            same = head.digest in ("", state.digest())
        except ValueError:  # meta that no errata can have written
            same = False
        if not same:
            raise MissingState(
                f"the state in {folder} is damaged: its content is not the one whose hash "
                f"state.json holds. {_RESTORE}"
            )
        return state


_RESTORE = "Restore it from a copy, or prepare it again."


class ChunkWorkers(Protocol):
    """Other processes with the same model, which share the work on independent chunks."""

    def map(self, task: Callable[[Any, C], R], chunks: Iterable[C]) -> Iterator[tuple[C, R]]:
        """The chunks with `task(model, chunk)`, in the order of the chunks. All is pickled."""
        ...


class Shareable(Protocol):
    """What can be prepared: an editor or a scope."""

    name: ClassVar[str]
    in_chunks: ClassVar[bool]

    @property
    def uses_state(self) -> bool: ...


def check_shareable(what: Shareable) -> None:
    """Raises BadSpec if workers could do nothing for the preparation of `what`."""
    if what.uses_state and not what.in_chunks:
        raise BadSpec(
            f"workers cannot share the preparation of '{what.name}': it has no independent parts "
            "(a training, for example, needs each step for the next). Leave --ray out."
        )


@dataclass(frozen=True)
class PrepareContext:
    """Checkpoint folder, progress callback and workers of a long preparation.

    progress: called with (what, done, total). workers: what `mapped` shares the chunks out to.
    Without a folder, a killed preparation starts from the beginning. The caller of `prepare` calls
    `clear` when the state is saved.
    """

    folder: Path | None = None
    progress: Callable[[str, int, int], None] | None = None
    workers: ChunkWorkers | None = None

    def check(self, what: Shareable) -> None:
        """Raises BadSpec if there are workers that would have nothing to do."""
        if self.workers is not None:
            check_shareable(what)

    def mapped(
        self, backbone: Any, task: Callable[[Any, C], R], chunks: Iterable[C]
    ) -> Iterator[tuple[C, R]]:
        """Each chunk with `task(backbone, chunk)`, in order; on the workers, if there are some.

        So the state has the same bytes with any number of workers. task: a function of a module, or
        a `partial` of one, whose result depends on its arguments alone. The class of the editor or
        scope says `in_chunks = True`.
        """
        if self.workers is not None:
            yield from self.workers.map(task, chunks)
        else:
            for chunk in chunks:
                yield chunk, task(backbone, chunk)

    @property
    def checkpoint(self) -> Path | None:
        return None if self.folder is None else self.folder / "training.safetensors"

    def clear(self) -> None:
        """Removes the checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)

    def report(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass(frozen=True)
class StateHead:
    """The content of `state.json`; states of before have no `digest`."""

    editor: str
    meta: dict[str, Any]
    fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    digest: str = ""
    style: str = ""


def _problem(error: Exception) -> str:
    """What is wrong with a safetensors file, in words."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return "is damaged or cut off: it is no safetensors file"


def _card(state: State) -> str:
    """The folder's README.md: what the state is and how it was trained."""
    numbers = sum(t.numel() for t in state.tensors.values())
    lines = [
        f"# State of the errata editor `{state.editor}`",
        "",
        f"For the model with fingerprint `{state.fingerprint[:12]}`: {numbers} numbers in "
        f"{len(state.tensors)} tensors. State hash `{state.digest()[:16]}`.",
        "",
        f"    errata bench BACKBONE --editor {state.meta.get('editors', state.editor)} --state . "
        "--benchmark B --out RUN",
        "",
    ]
    if state.settings:
        lines += ["It works with these settings: " + files.dumps(dict(state.settings)) + ".", ""]
    training = state.meta.get("training")
    if isinstance(training, Mapping):
        lines += _training_table(training)
    return "\n".join(lines)


def _training_table(training: Mapping[str, Any]) -> list[str]:
    """The training log of `errata.training.loop`: one sentence, and the loss curve."""
    end = "stopped early" if training["stopped_early"] else "all steps done"
    curve = training["curve"]
    names = sorted({n for point in curve for part in ("train", "held_out") for n in point[part]})
    lines = [
        f"Trained {training['parameters']} parameters on {training['cases']} cases "
        f"({training['held_out']} more held out) for {training['steps']} steps, "
        f"{training['epochs']} epochs; {end}; the weights are those of step "
        f"{training['best_step']}, the best on the held-out cases.",
        "",
        "Each cell: mean on training cases since the line above / on held-out cases.",
        "",
        "| step | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for point in curve:
        cells = [
            f"{_cell(point['train'], name)} / {_cell(point['held_out'], name)}" for name in names
        ]
        lines.append(f"| {point['step']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.3g}" if name in values else "-"
