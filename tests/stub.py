"""A backbone without a model or tensors: answers depend on the prompt and on what is live."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import nn

from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.hooks.manager import HookManager
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Generated
from errata.core.patch import Patch, parts_of
from errata.core.types import Prompt, Scored, digest
from errata.patches.rows import Rows


class Notes(Patch):
    """Remembers answers by prompt text; spoils one in eight others, so that scores differ."""

    def __init__(self, known: Mapping[str, str]) -> None:
        super().__init__()
        self.known = dict(known)

    def say(self, prompt: Prompt, answer: str) -> str:
        if prompt.text in self.known:
            return self.known[prompt.text]
        spoiled = int(digest([prompt.text, sorted(self.known)])[:4], 16) % 8 == 0
        return "spoiled" if spoiled else answer

    def join(self, other: Patch) -> Patch:
        assert isinstance(other, Notes)
        return type(self)({**self.known, **other.known}).with_header(
            self.header, (*self.edits, *other.edits)
        )

    def pack(self) -> NoReturn:
        raise AssertionError

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> NoReturn:
        raise AssertionError


class NotesEditor(Editor):
    name = "notes"

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        return [EditResult(Notes({e.prompt.text: e.target for e in g}), s) for g, s in request]


class Stub(Backbone):
    """Knows every reference answer that it is shown, as the world is its model."""

    name = "stub"

    def __init__(self, delay: float = 0.0, right: Mapping[Prompt, str] | None = None) -> None:
        self.delay = delay
        self.right = dict(right or {})
        self.model = nn.Identity()
        self.hooks = HookManager(self.model, [])

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return False

    depth = width = property(lambda self: 1)  # type: ignore[assignment]
    context = property(lambda self: 10**6)  # type: ignore[assignment]
    dtype = property(lambda self: torch.float32)  # type: ignore[assignment]

    def fingerprint(self) -> str:
        return "stub"

    def device_of(self, site: str) -> torch.device:
        return torch.device("cpu")

    def activation(self, site: str) -> str:
        return "relu"

    def heads(self, layer: int) -> NoReturn:
        raise AssertionError("the stub has no attention")

    def encode(
        self, prompts: Sequence[Prompt], targets: Any = None, *, eos: bool = False, rows: Any = None
    ) -> Any:
        return SimpleNamespace(
            lengths=[0] * len(prompts),
            prompts=prompts,
            targets=tuple(
                self.answer_ids(t, p)
                for t, p in zip(targets or [""] * len(prompts), prompts, strict=True)
            ),
        )

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def answer_ids(self, text: str, prompt: Prompt) -> tuple[int, ...]:
        return tuple(map(ord, text))

    @contextmanager
    def ask(self, what: Any, *, rows: Any = None, answers_only: bool = False) -> Iterator[Any]:
        time.sleep(self.delay)
        said = []
        for prompt, row in zip(what.prompts, rows.tolist(), strict=True):
            text = self.right.get(prompt, "unknown")
            for patch in self.hooks.stack:
                note = patch.members()[row] if isinstance(patch, Rows) else patch
                for part in parts_of(note):
                    text = part.say(prompt, text)  # type: ignore[operator]
            said.append(tuple(map(ord, text)))

        def score(ids: Sequence[Sequence[int]]) -> list[Scored]:
            return [
                Scored(tuple(i), (-1.0,) * len(i), tuple(i) if tuple(i) == s else (0,) * len(i))
                for i, s in zip(ids, said, strict=True)
            ]

        yield SimpleNamespace(
            scores=lambda: score(what.targets),
            score=score,
            top=lambda k: [() for _ in said],
            greedy=lambda caps, free=None, lines=None: [
                Generated(s[:c], len(s) <= c) for s, c in zip(said, caps, strict=True)
            ],
        )

    def logits(self, what: Any, *, rows: Any = None) -> NoReturn:
        raise AssertionError

    def enter(
        self, batch: Any, layer: int, *, rows: Any = None, for_generation: bool = False
    ) -> NoReturn:
        raise AssertionError


def knowing(cases: Sequence[Any], panel: Sequence[Any], delay: float = 0.0) -> Stub:
    """A stub that is right before an edit, and wrong where the world wants a correction."""
    right = {}
    for case in cases:
        for p in case.probes:
            if p.kind in ("t_locality", "m_locality", "near_locality"):
                right[p.prompt] = p.reference
            if p.hop is not None:
                right[p.hop.prompt] = p.hop.reference
        for p in case.probes:
            if p.kind in ("reliability", "t_generality", "m_generality"):
                right[p.prompt] = case.edit.old or "unknown"
    right.update({p.prompt: p.reference for p in panel})
    return Stub(delay, right)
