"""An editor behind a scope: what an edit does, and where it applies, chosen apart.

`ScopedEditor` makes each edit alone, on the model without the edits of any scope, and puts the
patches into one memory (`errata.patches.route`). So the thousandth edit is what it would be as the
first one, and a question is answered by one edit or by none. An editor with a scope of its own
(serac, dualedit, visedit) brings its correction only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from errata.core.editor import EditLog, Editor, EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.gate import gate_class
from errata.core.hooks.hook import Hook, flat, flat_on_row
from errata.core.model.backbone import Backbone
from errata.core.model.scope import BlockScope, Scope
from errata.core.patch import Patch
from errata.core.state import PrepareContext, State
from errata.core.types import Case, Edit
from errata.patches.adapter import Adapter
from errata.patches.route import Route
from errata.patches.rows import Rows
from errata.patches.stack import Stack, stacked
from errata.patches.two_ways import in_way


class ScopedEditor(Editor):
    """`inner` behind `scope`. It has the name, the settings and the state of `inner`."""

    name: ClassVar[str] = ""
    inner: Editor
    scope: Scope

    def __init__(self, inner: Editor, scope: Scope) -> None:
        self.inner, self.scope = inner, scope
        self.preset, self.config = inner.preset, inner.config
        digest = {} if scope.state is None else {"scope.state": scope.state.digest()[:16]}
        settings = {f"scope.{k}": v for k, v in scope.passed.items()}
        self.passed = {**inner.passed, "scope": scope.name, **settings, **digest}

    def __repr__(self) -> str:
        return f"{self.inner!r} behind {self.scope!r}"

    def __reduce__(self) -> Any:
        return scoped, (self.inner, self.scope)  # its class has no name that could be imported

    def with_scope(self, scope: Scope) -> Self:
        """The same editor behind another scope, or the same one with a state."""
        return type(self)(self.inner, scope)

    # -- as the editor inside -----------------------------------------------------------------

    def for_backbone(self, backbone: Backbone) -> Editor:
        inner = self.inner.for_backbone(backbone)
        return self if inner is self.inner else type(self)(inner, self.scope)

    def idle(self) -> Mapping[str, str]:
        return self.inner.idle()

    @property
    def uses_state(self) -> bool:
        return self.inner.uses_state

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        return self.inner.train(backbone, cases, seed=seed, work=work)

    def shipped_state(self, backbone: Backbone) -> State | None:
        return self.inner.shipped_state(backbone)

    def check_model(self, backbone: Backbone) -> None:
        self.inner.check_model(backbone)

    def check_fit(self, backbone: Backbone, state: State | None = None) -> None:
        self.inner.check_fit(backbone, state)
        if self.scope.state is not None or not self.scope.uses_state:
            self.scope.for_model(backbone)

    def edited_sites(self, backbone: Backbone) -> Sequence[str]:
        return self.inner.edited_sites(backbone)

    def unfit(self, backbone: Backbone, edits: Sequence[Edit]) -> str | None:
        return self.inner.unfit(backbone, edits)

    # -- editing ------------------------------------------------------------------------------

    def _headed(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        with without_memories(backbone):
            return super()._headed(backbone, request)

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        scope = self.scope.for_model(backbone)
        flat_edits = request.edits
        found = self._alone(backbone, request)
        corrections = [self._correction(r.patch, scope, e) for r, (_, e) in
                       zip(found, flat_edits, strict=True)]  # fmt: skip
        with backbone.unedited():
            keys = scope.keys(backbone, [e for _, e in flat_edits])
        results = []
        for g, state in enumerate(request.states):
            index = [n for n, (of, _) in enumerate(flat_edits) if of == g]
            route = Route(scope, keys[index], [corrections[n] for n in index])
            log = _joint_log([found[n].log for n in index])
            results.append(EditResult(backbone.place(route.requires_grad_(False)), state, log))
        return results

    def _alone(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        """A result per edit of all groups, in order, each found without the others."""
        if not any(isinstance(h, Rows) for h in backbone.hooks.stack):
            states = [request.states[g] for g, _ in request.edits]
            return self.inner.edit_groups(
                backbone, [[e] for _, e in request.edits], states, seed=request.seed
            )
        # group i lies on row i of what is live
        columns: list[list[EditResult]] = [[] for _ in request.groups]
        for n in range(max(map(len, request.groups))):
            edits = [group[min(n, len(group) - 1)] for group in request.groups]
            made = self.inner.edit_groups(
                backbone, [[e] for e in edits], request.states, seed=request.seed
            )
            for group, column, result in zip(request.groups, columns, made, strict=True):
                if n < len(group):
                    column.append(result)
        return [result for column in columns for result in column]

    def _correction(self, patch: Patch, scope: Scope, edit: Edit) -> Patch:
        """What the patch of an edit does, without a scope of its own. Raises BadSpec."""
        if patch.rewrites:
            raise BadSpec(
                f"editor '{self.name}' puts its edits into the prompt, and a scope switches what "
                "happens inside the model. Choose an editor that changes the model (ft_l, "
                "tpatcher, memit, serac), or use it without --scope."
            )
        correction = _ungated(patch)
        below = sorted(s for s in correction.sites if s.startswith(("vision", "bridge", "embed")))
        if isinstance(scope, BlockScope) and below:
            raise BadSpec(
                f"editor '{self.name}' changes {below[0]}, below all text blocks, and the scope "
                f"'{scope.name}' reads what enters block {scope.config.layer}. Choose a scope that "
                "reads the prompt itself, such as testimony or lookup."
            )
        return correction.requires_grad_(False)


def scoped(inner: Editor, scope: Scope) -> ScopedEditor:
    """The editor behind a scope: a class of its own, with what the class of `inner` declares."""
    kind = type(inner)
    declared = ("name", "needs_state", "state_settings", "state_name", "keeps_state", "in_chunks",
                "requires", "without_state", "modalities", "presets", "preset_models",
                "Config")  # fmt: skip
    body: dict[str, Any] = {n: getattr(kind, n) for n in declared}
    cls: type[ScopedEditor] = type(f"Scoped{kind.__name__}", (ScopedEditor,), body)
    return cls(inner, scope)


def _joint_log(logs: Sequence[EditLog]) -> EditLog:
    """The log of a group from those of its edits, which were found apart."""
    if len(logs) == 1:
        return logs[0]
    steps = [x.steps for x in logs if x.steps is not None]
    losses = [x.loss for x in logs if x.loss is not None]
    reached = [x.reached for x in logs if x.reached is not None]
    return EditLog(
        sum(steps) / len(steps) if steps else None,
        max(losses, default=None),
        all(reached) if reached else None,
    )


def _ungated(patch: Patch) -> Patch:
    """The patch without its own decision where it applies."""
    if isinstance(patch, Route) and len(patch.corrections) == 1:
        return in_way(patch.corrections[0], 0)
    if isinstance(patch, Adapter):
        lowest = min((p.site for p in patch.network.places), key=lambda s: int(s.split(".")[1]))
        return Adapter(patch.network, patch.bank, gate_class("none")(lowest))
    members = patch.members()
    if members is None or patch.rows is not None:
        return patch
    return stacked(*(_ungated(p) for p in members if isinstance(p, Patch)))


@contextmanager
def without_memories(backbone: Backbone) -> Iterator[None]:
    """Only memories behind scopes are switched off: their edits are found as if alone."""
    others = [left for hook in backbone.hooks.stack if (left := _others(hook)) is not None]
    with backbone.only(*others):
        yield


def _others(hook: Hook) -> Hook | None:
    """The hook without memories; None if nothing is left of it."""
    if isinstance(hook, Rows):
        rows = [[h for h in flat_on_row([hook], r) if not isinstance(h, Route)]
                for r in range(hook.rows)]  # fmt: skip
        if not any(rows):
            return None
        return Rows([Stack([h for h in row if isinstance(h, Patch)]) for row in rows])
    if isinstance(hook, Route):
        return None
    if hook.members() is None:
        return hook
    left = [h for h in flat([hook]) if not isinstance(h, Route)]
    return Stack([h for h in left if isinstance(h, Patch)]) if left else None
