"""What an editor is: how an edit is found.

An editor never writes a weight and never sees a concrete backbone class. It returns a patch that
holds only the increment over whatever is applied when it is called.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.core import files
from errata.core.backbone import Backbone
from errata.core.config import parse_config
from errata.core.errors import BadBackbone, BadEdit, BadSpec, FingerprintMismatch, MissingState
from errata.core.patch import Header, Patch, versions
from errata.core.types import Case, Edit


@dataclass(frozen=True)
class State:
    """What an editor carries between edits, as a value: a trained network, statistics, a memory.

    `meta` is JSON-ready; `tensors` are saved as safetensors. `digest` identifies the content.
    `fingerprint` and `settings` say which model and which settings it was made for. A state that
    grew out of a prepared one keeps that one's digest as its `origin`.
    """

    editor: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    def digest(self) -> str:
        return self._digest

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins so, without that beginning."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @cached_property
    def views(self) -> dict[str, Any]:
        """What was made of the tensors once and is shared by all who use the state; not stored."""
        return {}

    def grown(self, tensors: Mapping[str, Tensor]) -> State:
        """The same with more or other tensors; it names the prepared state as its origin."""
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

    def save(self, folder: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        files.write_bytes(folder / "state.safetensors", to_safetensors(tensors))
        head = {
            "editor": self.editor,
            "meta": dict(self.meta),
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "origin": self.origin,
            "digest": self.digest(),
        }
        files.write_bytes(folder / "README.md", _card(self).encode())
        files.write_json(folder / "state.json", head)

    @classmethod
    def load(cls, folder: Path) -> State:
        if not (folder / "state.json").is_file():
            raise MissingState(f"{folder} holds no editor state. `errata prepare` writes one.")
        head = files.read_json(folder / "state.json")
        try:
            tensors = load_file(folder / "state.safetensors")  # memory-mapped
            editor, meta = str(head["editor"]), dict(head["meta"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise MissingState(
                f"the state in {folder} is damaged ({type(e).__name__}: {e}). Restore it from a "
                "copy, or prepare it again."
            ) from None
        return cls(
            editor,
            meta,
            tensors,
            head.get("fingerprint", ""),
            head.get("settings", {}),
            head.get("origin", ""),
        )


def _card(state: State) -> str:
    """What the state is, and how a trained one came about: what a reader of the folder sees."""
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
    """An account as `errata.training.loop` gives it: one sentence, and the loss curve."""
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


@dataclass(frozen=True)
class PrepareContext:
    """Where long preparations keep what they need to go on, and whom they tell how far they are.

    `progress` is called with (what, done, total). Without a folder, a killed one starts anew. Who
    called `prepare` calls `clear` once the state is saved.
    """

    folder: Path | None = None
    progress: Callable[[str, int, int], None] | None = None

    @property
    def checkpoint(self) -> Path | None:
        return None if self.folder is None else self.folder / "training.safetensors"

    def clear(self) -> None:
        """Drops the checkpoint of a training whose result is safe."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)

    def report(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass(frozen=True)
class EditRequest:
    """Edits to make: those of groups[i] in one patch, with states[i]; all draws come from `seed`.

    The groups are independent of each other. Iterating gives (group, state). Raises BadEdit for an
    edit that no editor can make.
    """

    groups: tuple[tuple[Edit, ...], ...]
    states: tuple[State | None, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        assert len(self.groups) == len(self.states), (len(self.groups), len(self.states))
        for _, edit in self.edits:
            check_edit(edit)

    @classmethod
    def of(
        cls,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None] | None = None,
        seed: int = 0,
    ) -> EditRequest:
        """A request from any sequences; without `states` no group has one."""
        return cls(tuple(map(tuple, groups)), tuple(states or [None] * len(groups)), seed)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[tuple[tuple[Edit, ...], State | None]]:
        return zip(self.groups, self.states, strict=True)

    @property
    def edits(self) -> list[tuple[int, Edit]]:
        """(group, edit) of all groups, in order."""
        return [(g, e) for g, group in enumerate(self.groups) for e in group]

    @property
    def prepared(self) -> list[State]:
        """The states, for an editor that works from one (`Editor` refuses a request without)."""
        states = [s for s in self.states if s is not None]
        assert len(states) == len(self.states), "an editor that uses a state was given none"
        return states

    def take(self, index: Sequence[int]) -> EditRequest:
        """The groups at `index` as a request."""
        return EditRequest(
            tuple(self.groups[i] for i in index), tuple(self.states[i] for i in index), self.seed
        )


@dataclass(frozen=True)
class EditLog:
    """How the patch of a group was found.

    steps, loss, reached: updates made, last loss of the edits, whether the search met its goal;
    None where nothing was searched. notes: JSON-ready, saved in the header of the patch.
    """

    steps: float | None = None
    loss: float | None = None
    reached: bool | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def search(self) -> dict[str, Any]:
        """The numbers of the search, as `timing.json` holds them; {} where there was none."""
        if self.steps is None:
            return {}
        return {"steps": self.steps, "loss": self.loss, "reached": self.reached}


@dataclass(frozen=True)
class EditResult:
    """What an editor returns for one group of edits.

    patch: the change, on top of what is applied. state: for the next edit. log: of the search.
    """

    patch: Patch
    state: State | None = None
    log: EditLog = EditLog()


class Editor(ABC):
    """Base of all editors.

    Settings are the nested frozen `Config`; papers' settings are named presets.
    """

    plugin_kind: ClassVar[str] = "editors"
    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: prepare is expensive and must be run (and its result passed) by the user
    needs_state: ClassVar[bool] = False
    #: settings that a state depends on; they must be equal when it is used
    state_settings: ClassVar[tuple[str, ...]] = ()
    #: what its states are called where several editors take the same ones; "" = its own name
    state_name: ClassVar[str] = ""
    #: a cheap state is nevertheless kept between runs, in ERRATA_HOME
    keeps_state: ClassVar[bool] = False
    #: how to do without a state, in words, where one can
    without_state: ClassVar[str] = ""
    #: what the method can edit: `text`, `image`
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    #: capabilities of a model that the search needs beside asking, such as `draw`
    requires: ClassVar[frozenset[str]] = frozenset()

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings."""

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        if preset is not None and preset not in self.presets:
            known = ", ".join(sorted(self.presets)) or "none"
            raise BadSpec(f"editor '{self.name}' has no preset '{preset}'. It has: {known}.")
        self.preset = preset
        self.passed = dict(passed)
        self.config: Any = parse_config(
            "editor", self.name, self.Config, {**self.presets.get(preset or "", {}), **passed}
        )

    def for_backbone(self, backbone: Backbone) -> Editor:
        """The same editor with the preset named after the backbone, unless a preset was chosen."""
        if self.preset is None and backbone.name in self.presets:
            return type(self)(preset=backbone.name, **self.passed)
        return self

    @property
    def summary(self) -> dict[str, Any]:
        """Settings passed by the user apart from the resolved ones."""
        return {"preset": self.preset, "passed": self.passed, "config": _plain(self.config)}

    @property
    def uses_state(self) -> bool:
        """Whether the editor, as it is set, works from a prepared state."""
        return self.needs_state

    def prepare(
        self,
        backbone: Backbone,
        cases: Sequence[Case],
        *,
        seed: int = 0,
        work: PrepareContext | None = None,
    ) -> State | None:
        """What the editor learns once from training cases; None where it uses none.

        With a folder in `work`, a training that was killed goes on where its checkpoint is.
        """
        self.check_model(backbone)
        work = work or PrepareContext()
        state = self.train(backbone, cases, seed=seed, work=work) if self.uses_state else None
        if state is None:
            return None
        return replace(state, fingerprint=backbone.fingerprint(), settings=self._state_settings())

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        """The state itself; called by `prepare`, which notes what it was made for."""
        return None

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        """As `learn`, for editors that take long over it; see `errata.training.loop`."""
        return self.learn(backbone, cases, seed=seed)

    def shipped_state(self, backbone: Backbone) -> State | None:
        """The state that comes with a bundled model and fits the editor as it is set."""
        from errata.io import states

        wanted = self._state_settings()
        shipped = states.shipped(self.state_name or self.name, backbone.fingerprint())
        return next((s for s in shipped if dict(s.settings) == wanted), None)

    def _state_settings(self) -> dict[str, Any]:
        config = _plain(self.config)
        return {name: config[name] for name in self.state_settings}

    @abstractmethod
    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        """One independent patch per group, whose edits are made jointly.

        Called inside `backbone.applied`.
        """

    def edit(
        self,
        backbone: Backbone,
        edits: Sequence[Edit],
        state: State | None = None,
        *,
        seed: int = 0,
    ) -> EditResult:
        """One patch that holds all the edits jointly, on top of whatever is applied."""
        return self._headed(backbone, EditRequest.of([edits], [state], seed))[0]

    def edit_rows(
        self,
        backbone: Backbone,
        edits: Sequence[Edit],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[EditResult]:
        """One independent patch per edit; row i is found on top of row i of what is applied."""
        return self.edit_groups(backbone, [[e] for e in edits], states, seed=seed)

    def edit_groups(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[EditResult]:
        """One independent patch per group of joint edits."""
        return self._headed(backbone, EditRequest.of(groups, states, seed))

    def _headed(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        self.check_model(backbone)
        if self.uses_state and any(s is None for s in request.states):
            shipped = self.shipped_state(backbone)
            states = tuple(shipped if s is None else s for s in request.states)
            request = replace(request, states=states)
        for state in request.states:
            self._check_state(backbone, state)
        results = self.find(backbone, request)
        for (group, state), result in zip(request, results, strict=True):
            header = self._header(backbone, state, request.seed)
            header = replace(header, notes={**header.notes, **result.log.notes})
            for part in (*result.patch.parts(), result.patch):
                part.with_header(header, group).requires_grad_(False)
        return results

    def check_model(self, backbone: Backbone) -> None:
        """Raises BadBackbone for a model that cannot do what the search needs."""
        lacking = sorted(self.requires - backbone.capabilities)
        if lacking:
            raise BadBackbone(
                f"editor '{self.name}' needs a model that can {' and '.join(lacking)}; "
                f"{backbone.name} can {', '.join(sorted(backbone.capabilities))}. Choose another "
                "model or another --editor."
            )

    def _check_state(self, backbone: Backbone, state: State | None) -> None:
        """Raises MissingState, FingerprintMismatch or BadSpec: never works without a word."""
        if state is None:
            if self.uses_state:
                raise MissingState(
                    f"editor '{self.name}', as it is set, works from a state: errata prepare "
                    f"{backbone.name} --editor {self.name} --benchmark NAME@train --out DIR, then "
                    f"pass --state DIR. {self.without_state}"
                )
            return
        if state.fingerprint and state.fingerprint != backbone.fingerprint():
            raise FingerprintMismatch(
                f"the state of '{self.name}' was made for another model "
                f"({state.fingerprint[:12]}), not for {backbone.name} "
                f"({backbone.fingerprint()[:12]}). Prepare it again on this model."
            )
        now = self._state_settings()
        other = [k for k in now if k in state.settings and state.settings[k] != now[k]]
        if other:
            raise BadSpec(
                f"the state of '{self.name}' was made with {other[0]}={state.settings[other[0]]}, "
                f"now it is {now[other[0]]}. Prepare it again, or set it as it was."
            )

    def _header(self, backbone: Backbone, state: State | None, seed: int) -> Header:
        return Header(
            editor=self.name,
            arguments={"preset": self.preset, **self.passed},
            backbone=backbone.name,
            revision=backbone.revision,
            fingerprint=backbone.fingerprint(),
            dtype=str(backbone.dtype).removeprefix("torch."),
            state=(state.origin or state.digest()) if state is not None else "",
            seed=seed,
            versions=versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            notes={"style": getattr(backbone, "style", "")},
        )


def check_edit(edit: Edit) -> None:
    """Raises BadEdit for an edit that no editor can make."""
    if not edit.target.strip():
        raise BadEdit(
            f"edit '{edit.id or edit.prompt.text}' has an empty target. "
            "Give the answer it should have."
        )
    if not edit.prompt.text.strip():
        raise BadEdit(
            f"edit '{edit.id}' has an empty prompt. Give the question to be answered anew."
        )


def _plain(config: Any) -> Any:
    from pydantic import TypeAdapter

    assert is_dataclass(config)
    return TypeAdapter(type(config)).dump_python(config, mode="json")
