"""What an editor is: how an edit is found.

An editor never writes a weight and never sees a concrete backbone class. It returns a patch that
holds only the increment over whatever is applied when it is called.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.core import record
from errata.core.backbone import Backbone
from errata.core.errors import BadEdit, BadSpec, MissingState
from errata.core.patch import Header, Patch, versions
from errata.core.types import Case, Edit


@dataclass(frozen=True)
class State:
    """What an editor carries between edits, as a value: a trained network, statistics, a memory.

    `meta` is JSON-ready; `tensors` are saved as safetensors. `digest` identifies the content.
    """

    editor: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def digest(self) -> str:
        h = hashlib.sha256(record.dumps(dict(self.meta)).encode())
        for name in sorted(self.tensors):
            h.update(name.encode())
            h.update(
                self.tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            )
        return h.hexdigest()

    def save(self, folder: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
        record.write_bytes(folder / "state.safetensors", to_safetensors(tensors))
        record.write_json(folder / "state.json", {"editor": self.editor, "meta": dict(self.meta)})

    @classmethod
    def load(cls, folder: Path) -> State:
        try:
            head = record.read_json(folder / "state.json")
            tensors = from_safetensors((folder / "state.safetensors").read_bytes())
        except FileNotFoundError:
            raise MissingState(
                f"{folder} holds no editor state. `errata prepare` writes one."
            ) from None
        return cls(head["editor"], head["meta"], tensors)


@dataclass(frozen=True)
class Found:
    """One result of an edit: the increment, and the state to hand to the next edit."""

    patch: Patch
    state: State | None = None


class Editor(ABC):
    """Base of all editors.

    Settings are the nested frozen `Config`; papers' settings are named presets.
    """

    plugin_kind: ClassVar[str] = "editors"
    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: prepare is expensive and must be run (and its result passed) by the user
    needs_state: ClassVar[bool] = False
    #: what the method can edit: `text`, `image`
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

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
            self.name, self.Config, {**self.presets.get(preset or "", {}), **passed}
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

    def prepare(self, backbone: Backbone, cases: Sequence[Case], *, seed: int = 0) -> State | None:
        """What the editor learns once from training cases; None when there is nothing to learn."""
        return None

    @abstractmethod
    def find(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None],
        *,
        seed: int,
    ) -> list[Found]:
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
    ) -> Found:
        """One patch that holds all the edits jointly, on top of whatever is applied."""
        return self._headed(backbone, [list(edits)], [state], seed)[0]

    def edit_rows(
        self,
        backbone: Backbone,
        edits: Sequence[Edit],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[Found]:
        """One independent patch per edit; row i is found on top of row i of what is applied."""
        return self.edit_groups(backbone, [[e] for e in edits], states, seed=seed)

    def edit_groups(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[Found]:
        """One independent patch per group of joint edits."""
        return self._headed(backbone, groups, states or [None] * len(groups), seed)

    def _headed(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None],
        seed: int,
    ) -> list[Found]:
        for edit in (e for g in groups for e in g):
            check_edit(edit)
        if self.needs_state and any(s is None for s in states):
            raise MissingState(
                f"editor '{self.name}' must be prepared first: errata prepare {backbone.name} "
                f"--editor {self.name} --benchmark NAME@train --out DIR, then pass --state DIR."
            )
        found = self.find(backbone, groups, states, seed=seed)
        for group, state, one in zip(groups, states, found, strict=True):
            one.patch.with_header(self._header(backbone, state, seed), group).requires_grad_(False)
        return found

    def _header(self, backbone: Backbone, state: State | None, seed: int) -> Header:
        return Header(
            editor=self.name,
            arguments={"preset": self.preset, **self.passed},
            backbone=backbone.name,
            revision=backbone.revision,
            fingerprint=backbone.fingerprint(),
            dtype=str(backbone.dtype).removeprefix("torch."),
            state=state.digest() if state is not None and state.tensors else "",
            seed=seed,
            versions=versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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


def parse_config(editor: str, cls: type, given: Mapping[str, Any]) -> Any:
    """A frozen Config from settings given in Python or as text.

    Wrong names and types raise BadSpec.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {f.name for f in fields(cls)}
    for name in given:
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise BadSpec(
                f"editor '{editor}' has no setting '{name}'.{hint} "
                f"It has: {', '.join(sorted(known)) or 'none'}."
            )
    try:
        return TypeAdapter(cls).validate_python(dict(given))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"])
        raise BadSpec(
            f"editor '{editor}': setting {where}={first['input']!r}: {first['msg']}."
        ) from None


def _plain(config: Any) -> Any:
    from pydantic import TypeAdapter

    assert is_dataclass(config)
    return TypeAdapter(type(config)).dump_python(config, mode="json")
