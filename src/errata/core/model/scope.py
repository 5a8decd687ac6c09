"""What a scope is: it says which edit of a memory a question belongs to, or none.

One file in `errata/scopes/`, whose name is the scope's; third parties register an entry point in
the group `errata.scopes`. The memory holds one key per edit. A scope makes a query of each
question, from its prompt and pictures alone, and compares it with all keys: the edit with the
highest score is the one that the question may belong to, and the score says whether it does.

This is decided once per question, before there is an answer. A `BlockScope` reads the hidden states
that enter one text block; a `PromptScope` reads the prompt itself, before the model runs, and may
ask the unedited model questions of its own.

Shapes: B questions, K edits, T columns, d width of the hidden states, e width of a key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from errata.core import registry
from errata.core.config import parse_config
from errata.core.errors import BadSpec, MissingState
from errata.core.files import dumps
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import PromptStates
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit, Prompt

CHUNK = 64  # prompts that are read together
TIE = 1e-5  # scores closer than this count as equal


class Scope(ABC):
    """Base of all scopes: subclass `BlockScope` or `PromptScope`.

    needs_state: it is trained by `errata prepare`. keeps_state: its state is cheap, and is
    collected from the train split where none is given. in_chunks: `train` has work for workers
    (`PrepareContext.mapped`). state_name: the editor whose state it reads; "" = its own.
    for_benches: it knows the cases of a run (`told`), so that it is a bound and no scope for use.
    reach: which questions it takes, for people who are no experts. modalities: edits that it can
    take, as `Editor.modalities`. choice: place among the scopes that the playground tries when the
    user names none, from 1; 0 = never chosen.
    """

    plugin_kind: ClassVar[str] = "scopes"
    name: ClassVar[str]
    needs_state: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False
    in_chunks: ClassVar[bool] = False
    state_name: ClassVar[str] = ""
    for_benches: ClassVar[bool] = False
    reach: ClassVar[str] = ""
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    choice: ClassVar[int] = 0

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings."""

    def __init__(self, state: State | None = None, **passed: Any) -> None:
        """Raises BadSpec for a setting that it does not have."""
        self.state, self.passed = state, passed
        self.config: Any = parse_config("scope", self.name, self.Config, passed)

    def __repr__(self) -> str:
        given = "".join(f", {k}={v!r}" for k, v in self.passed.items())
        return f"{type(self).__name__}({self.name!r}{given})"

    @property
    def site(self) -> str:
        """The hidden states that it reads, `text.{i}.in`; "" if it reads the prompt itself."""
        return ""

    @property
    def form(self) -> str:
        """Equal for scopes whose edits can be in one memory."""
        return dumps(self.pack())

    # -- its state ----------------------------------------------------------------------------

    @property
    def uses_state(self) -> bool:
        """Whether the scope, with its settings, works from a prepared state."""
        return self.needs_state

    @property
    def lacks_state(self) -> bool:
        """Whether it has no state yet, needs one, and can collect it at little cost."""
        return self.state is None and self.uses_state and self.keeps_state

    @property
    def summary(self) -> dict[str, Any]:
        """As `Editor.summary`."""
        return {"preset": None, "passed": self.passed, "config": asdict(self.config)}

    def for_backbone(self, backbone: Backbone) -> Self:
        """The scope itself: scopes have no presets."""
        return self

    def settings_of_state(self) -> dict[str, Any]:
        """The settings that its state depends on."""
        return {}

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        """Makes the state from training cases; None for a scope that has no state of its own."""
        return None

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        """As `learn`, with workers."""
        return self.learn(backbone, cases, seed=seed)

    @in_ordinary_modes
    def prepare(
        self,
        backbone: Backbone,
        cases: Sequence[Case],
        *,
        seed: int = 0,
        work: PrepareContext | None = None,
    ) -> State | None:
        """The state that the scope learns from training cases; None if it learns none."""
        if not self.uses_state or self.state_name:
            return None
        work = work or PrepareContext()
        work.check(self)
        with torch.no_grad(), backbone.unedited():
            state = self.train(backbone, cases, seed=seed, work=work)
        return backbone.marked(state, self.settings_of_state())

    def with_state(self, state: State | None) -> Self:
        """The same scope, which works from `state`. Raises BadSpec for that of another one."""
        wanted = self.state_name or state_label(self.name)
        if state is not None and state.editor != wanted:
            raise BadSpec(
                f"this is a state of '{state.editor}', and the scope '{self.name}' works from one "
                f"of '{wanted}'. Give another --scope-state."
            )
        return type(self)(state, **self.passed)

    def prepared(self, backbone: Backbone) -> State:
        """Its state, checked. Raises MissingState, FingerprintMismatch."""
        state = self.state
        if state is None:
            what = f"--editor {self.state_name}" if self.state_name else f"--scope {self.name}"
            raise MissingState(
                f"the scope '{self.name}', as it is set, works from a state: errata prepare "
                f"{backbone.name} {what} --benchmark NAME@train --out DIR, then pass "
                "--scope-state DIR."
            )
        backbone.check_state(state, f"the state of the scope '{self.name}'")
        backbone.check_style(state.style, f"the state of the scope '{self.name}'")
        return state

    # -- deciding -----------------------------------------------------------------------------

    def for_model(self, backbone: Backbone) -> Self:
        """The scope as it is used on a model: every setting has a value.

        Raises MissingState, FingerprintMismatch or BadSpec.
        """
        if self.uses_state:
            self.prepared(backbone)
        return self

    def told(self, cases: Sequence[Case]) -> Self:
        """The scope of a run, which may know its cases; only a bound of what is possible does."""
        return self

    @abstractmethod
    def keys(self, backbone: Backbone, edits: Sequence[Edit]) -> Tensor:
        """[K, e] one key per edit, read from the unedited model."""

    @abstractmethod
    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        """[B, K] scores of queries [B, e] with keys [K, e], the higher the nearer."""

    @abstractmethod
    def opens(self, score: Tensor) -> Tensor:
        """[B] whether a question belongs to its nearest edit, from the score."""

    def penalty(self, count: int) -> float:
        """What is taken off each score in a memory of `count` edits; none by default."""
        return 0.0

    def nearest(
        self, query: Tensor, keys: Tensor, own_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """([B] the nearest edit of each question, [B] its score; -inf where it may use none).

        own_BK: the edits that a question may belong to; None = all.
        """
        score_BK = self.match(query, keys)
        if own_BK is None:
            score_BK = score_BK - self.penalty(len(keys))
        else:
            off_B = [self.penalty(max(n, 1)) for n in own_BK.sum(1).tolist()]
            score_BK = score_BK - score_BK.new_tensor(off_B)[:, None]
            score_BK = score_BK.masked_fill(~own_BK, -torch.inf)
        best_B = score_BK.amax(1)
        # of equally near edits the latest, so that a fact can be edited again
        equal_BK = score_BK >= best_B[:, None] - TIE
        entry_B = keys.shape[0] - 1 - equal_BK.int().flip(1).argmax(1)
        return entry_B, best_B

    def way(self, query: Tensor, keys: Tensor) -> Tensor:
        """[B] in which way a question belongs to an edit: 0 it asks for the edited fact, 1 its
        answer follows from it. query [B, e], keys [B, e] of the edits that they belong to.
        """
        return torch.zeros(len(query), dtype=torch.long, device=query.device)

    def replaced(self, old: Tensor, new: Tensor) -> Tensor:
        """[K] the edits with keys `old` that one with a key of `new` takes the place of."""
        if not old.is_floating_point():
            return (old[:, None] == new[None]).all(-1).any(1)
        gap = squared_gaps(old, new)
        size = old.double().square().sum(-1)[:, None] + new.double().square().sum(-1)
        return (gap <= 1e-9 * size).any(1)

    def join(self, keys: Sequence[Tensor]) -> Tensor:
        """The keys of several memories as those of one."""
        return torch.cat(list(keys))

    # -- as data ------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Moves what it compares with to a device; most scopes hold nothing."""
        return

    def pack(self) -> dict[str, Any]:
        """JSON-ready: what `unpack_scope` makes the scope from."""
        digest = self.state.digest() if self.state is not None else ""
        return {"name": self.name, "settings": asdict(self.config), "state": digest}


class BlockScope(Scope):
    """Reads the hidden states that enter one text block of the unedited model.

    Where the block lies above the ones that an edit changes, the prompt first runs up to there
    without the edit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Scope.Config):
        """layer: the block whose input is read, negative from the end; null = chosen by the state.
        threshold: least score of a question that belongs to an edit; null = tuned by the state.
        """

        layer: int | None = None
        threshold: float | None = None

    @property
    def site(self) -> str:
        assert self.config.layer is not None, "a scope is used as `for_model` returns it"
        return f"text.{self.config.layer}.in"

    @property
    def uses_state(self) -> bool:
        return self.needs_state or self.config.layer is None or self.config.threshold is None

    def read_at(self, backbone: Backbone, layer: int, threshold: float) -> Self:
        """The same scope at a block and with a threshold."""
        state = self.state if self.needs_state else None
        return type(self)(
            state, **{**self.passed, "layer": backbone.layer(layer), "threshold": threshold}
        )

    def opens(self, score: Tensor) -> Tensor:
        opens: Tensor = score >= self.config.threshold
        return opens

    @abstractmethod
    def query(self, prompts: PromptStates) -> Tensor:
        """[B, e] of questions, from what enters the block."""

    def of_edit(self, prompts: PromptStates) -> Tensor:
        """[K, e] of edits, from what enters the block for their prompts."""
        return self.query(prompts)

    @torch.no_grad()
    def keys(self, backbone: Backbone, edits: Sequence[Edit]) -> Tensor:
        parts = []
        for start in range(0, len(edits), CHUNK):
            batch = backbone.encode([e.prompt for e in edits[start : start + CHUNK]])
            if self.config.layer == 0:
                raise BadSpec(
                    f"scope '{self.name}': what enters block 0 is one word, not a question. Give a "
                    "higher layer."
                )
            stream = backbone.enter(batch, self.config.layer).stream
            assert stream is not None
            parts.append(self.of_edit(PromptStates.of(stream, batch)))
        return torch.cat(parts)


class PromptScope(Scope):
    """Reads the prompt itself, before the model runs: of a chat the last question, with all
    pictures.
    """

    @abstractmethod
    def query(self, backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
        """[B, e] of prompts; no patch is live."""

    def keys(self, backbone: Backbone, edits: Sequence[Edit]) -> Tensor:
        return self.query(backbone, [e.prompt for e in edits])


def squared_gaps(a: Tensor, b: Tensor) -> Tensor:
    """[A, B] squared distances of [A, e] and [B, e], by one product in float64."""
    a, b = a.double(), b.double()
    gap = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T
    return gap.clamp(min=0.0)


def state_label(name: str) -> str:
    """What `State.editor` is for the state of a scope."""
    return f"scope {name}"


def scope_of(name: str, state: State | None = None, **settings: Any) -> Scope:
    """A scope by name. Raises UnknownName, or BadSpec for a wrong setting or state."""
    scope: Scope = registry.load("scopes", name)(**settings)
    return scope if state is None else scope.with_state(state)


def unpack_scope(settings: Mapping[str, Any], find: Callable[[str], State]) -> Scope:
    """The inverse of `Scope.pack`. find: a state by its hash. Raises MissingState."""
    cls: type[Scope] = registry.load("scopes", str(settings["name"]))
    state = find(str(settings["state"])) if settings["state"] else None
    return cls(state, **settings["settings"])
