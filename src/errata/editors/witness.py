"""witness: our editor. It asks the unedited model where an edit applies, and corrects in two ways.

Source: this project (docs/scopes.md, docs/results/scopes.md). An edit is found, stored and decided
in three parts, each of which is a plug-in of its own:

- *where*: the scope `testimony` decides from what the unedited model says of the picture and of
  the question, once, before there is an answer;
- *the fact itself*, in any words and at any picture of the thing: the correction of `direct`
  (ft_l). Nothing holds it back from other questions: the scope does;
- *what follows from it* (the country from the town, the caption from the colour): the correction
  of `follows` (ft_v), which changes what is seen instead of what is said, so that the model draws
  the consequence itself. Which questions follow from which the scope learns on training cases.

Outside of the scope the answer is that of the unedited model, bit for bit. An edit without a
picture has no second way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from errata.algorithms.scoped import ScopedEditor, scoped, without_memories
from errata.core import registry
from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.scope import Scope, scope_of, state_label
from errata.core.patch import Patch
from errata.core.state import PrepareContext, State
from errata.core.types import Case
from errata.patches.route import Route
from errata.patches.two_ways import TwoWays
from errata.scopes.testimony import LEARNT

SCOPE = "testimony"
NOTHING = "none"


class WitnessEditor(Editor):
    """A memory behind `testimony`, with a correction for the fact and one for what follows."""

    name = "witness"
    needs_state = True
    in_chunks = True
    state_name = state_label(SCOPE)
    state_settings = LEARNT
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})

    @dataclass(frozen=True, kw_only=True)
    class Config(Editor.Config):
        """direct: the editor that corrects the fact itself. follows: the editor that corrects what
        follows from it; `none` = nothing does. questions: how many questions are asked about a
        picture at most. pictures: how many fixed pictures a question is put to. pool: how many
        questions the choice is made from. cases: number of training cases. relation_kinds: kinds of
        training questions from which it is learnt which relations follow from which. threshold:
        least score (a logit) of a question that belongs to an edit; null = the one with which most
        training cases are right in all their questions. rise: how much higher it is in a memory of
        ten times as many edits; null = tuned in the same way. All but the first two are settings of
        the scope `testimony`.
        """

        direct: str = "ft_l"
        follows: str = "ft_v"
        questions: int = 12
        pictures: int = 4
        pool: int = 32
        cases: int = 150
        relation_kinds: tuple[str, ...] = ("portability",)
        threshold: float | None = None
        rise: float | None = None

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        for name in ("direct", "follows"):
            self._check_part(name, getattr(self.config, name))

    def _check_part(self, setting: str, name: str) -> None:
        """Raises UnknownName, or BadSpec for an editor that cannot be a part of this one."""
        if setting == "follows" and name == NOTHING:
            return
        if name == self.name or self._part(name).uses_state:
            raise BadSpec(
                f"editor '{self.name}': {setting}={name} works from a state of its own, which is "
                "not passed on. Choose an editor that works without one: ft_l, ft_v, lora."
            )

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        settings = {n: getattr(self.config, n) for n in LEARNT}
        return scope_of(SCOPE, **settings).train(backbone, cases, seed=seed, work=work)

    def edited_sites(self, backbone: Backbone) -> Sequence[str]:
        return self._part(self.config.direct).for_backbone(backbone).edited_sites(backbone)

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        scope = self._scope(request.prepared[0])
        with without_memories(backbone):
            direct = self._made(backbone, self.config.direct, scope, request.groups, request.seed)
            seen = self._seen(backbone, scope, request)
        results = []
        for group, state, fact, more in zip(
            request.groups, request.states, direct, seen, strict=True
        ):
            route = fact.patch
            assert isinstance(route, Route)
            corrections = [
                TwoWays(a, more[n]) if n in more else a for n, a in enumerate(route.corrections)
            ]
            assert len(corrections) == len(group), "one correction per edit"
            patch = Route(route.scope, route.keys, corrections).requires_grad_(False)
            results.append(EditResult(backbone.place(patch), state, fact.log))
        return results

    def _scope(self, state: State) -> Scope:
        """The scope. What follows is left alone where the state does not know, unless asked for."""
        more = {n: v for n in ("threshold", "rise") if (v := getattr(self.config, n)) is not None}
        known = "follows" in state.tensors or "follows" in self.passed
        return scope_of(SCOPE, state, consequences=known and self._follows, **more)

    @property
    def _follows(self) -> bool:
        return bool(self.config.follows != NOTHING)

    def idle(self) -> Mapping[str, str]:
        return {**super().idle(), **({} if self._follows else {"relation_kinds": "follows=none"})}

    def _part(self, name: str) -> Editor:
        editor: Editor = registry.load("editors", name)()
        return editor

    def _made(
        self, backbone: Backbone, name: str, scope: Scope, groups: Any, seed: int
    ) -> list[EditResult]:
        editor: ScopedEditor = scoped(self._part(name), scope)
        return editor.edit_groups(backbone, groups, seed=seed)

    def _seen(
        self, backbone: Backbone, scope: Scope, request: EditRequest
    ) -> list[Mapping[int, Patch]]:
        """Per group: number of an edit with a picture -> its correction of what follows."""
        pictured = [[n for n, e in enumerate(group) if e.prompt.images] for group in request.groups]
        some = next((e for _, e in request.edits if e.prompt.images), None)
        if not self._follows or some is None:
            return [{} for _ in pictured]
        # a group without pictures has its row in the batch all the same
        groups = [
            [group[n] for n in index] or [some]
            for group, index in zip(request.groups, pictured, strict=True)
        ]
        made = self._made(backbone, self.config.follows, scope, groups, request.seed)
        out: list[Mapping[int, Patch]] = []
        for index, result in zip(pictured, made, strict=True):
            assert isinstance(result.patch, Route)
            out.append(dict(zip(index, result.patch.corrections, strict=False)))
        return out
