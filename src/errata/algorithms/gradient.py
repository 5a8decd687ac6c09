"""Base of editors that search a patch by gradient descent on the edits' loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from errata.core.editor import EditLog, Editor, EditRequest, EditResult
from errata.core.errors import BadSpec
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.patch import Patch
from errata.core.state import State
from errata.patches._parts import PartsPatch
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.training.optimise import SearchSettings, search

#: bytes for the patches of one search, with gradients and Adam's moments
BUDGET = 4 << 30


class GradientEditor(Editor):
    """Subclasses implement `start`, the patch before the search; `losses` may add loss terms."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """lr: step size of Adam. steps: updates at most. stop_loss: an edit is done when its loss
        is below it and every target token is the most likely one. max_grad_norm: larger gradients
        of an edit are scaled down to this norm, 0 = no clipping. eos: the end token is part of the
        target.
        """

        renamed: ClassVar[Mapping[str, str]] = {"clip": "max_grad_norm"}
        lr: float = 1e-3
        steps: int = 25
        stop_loss: float = 1e-2
        max_grad_norm: float = 0.0
        eos: bool = True

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if not c.lr > 0 or c.steps < 0:
            raise BadSpec(
                f"editor '{self.name}': lr={c.lr}, steps={c.steps} cannot be searched with. Give "
                "lr above 0 and at least 0 steps."
            )

    def settings(self) -> SearchSettings:
        c = self.config
        return SearchSettings(
            lr=c.lr, steps=c.steps, stop_loss=c.stop_loss, max_grad_norm=c.max_grad_norm, eos=c.eos
        )

    @abstractmethod
    def start(self, backbone: Backbone, request: EditRequest) -> PartsPatch:
        """A patch with a row per group that changes nothing yet.

        Its parameters [R, ...] require gradients and are searched.
        """

    def losses(
        self, backbone: Backbone, request: EditRequest, patch: Patch
    ) -> tuple[Callable[[], Tensor] | None, Hook | None]:
        """(function that gives extra losses [R] after each forward, recorder that it reads)."""
        return None, None

    def next_states(
        self, backbone: Backbone, request: EditRequest, patch: Patch
    ) -> list[State | None]:
        """The state of each group for its next edit; `patch` is the searched row patch."""
        return list(request.states)

    def fixed_patches(self, backbone: Backbone, request: EditRequest) -> list[Patch] | None:
        """A patch per group that is not searched: applied during the search, and part of the
        edit.
        """
        return None

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        results: dict[int, EditResult] = {}
        for index in self._chunks(backbone, request):
            part = request.take(index)
            fixed = self.fixed_patches(backbone, part)
            with backbone.applied(backbone.place(Rows(fixed)) if fixed else None):
                rows = self._search(backbone, part)
            for row, group in enumerate(index):
                result = rows[row]
                if fixed:
                    result = replace(result, patch=Stack([fixed[row], result.patch]))
                results[group] = result
        return [results[i] for i in range(len(request))]

    def _search(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        patch = backbone.place(self.start(backbone, request))
        penalty, watch = self.losses(backbone, request, patch)
        log = search(backbone, request.groups, patch, self.settings(), penalty=penalty, watch=watch)
        states = self.next_states(backbone, request, patch)
        results = []
        for r, state in enumerate(states):
            of_row = EditLog(log.steps[r], log.loss[r], log.reached[r])
            results.append(EditResult(patch.row(r), state, of_row))
        return results

    def _chunks(self, backbone: Backbone, request: EditRequest) -> list[list[int]]:
        """Indices of groups that are searched together: of equal size, within the memory budget.

        If row patches are applied, group i is on row i, and all groups are searched at once.
        """
        if _has_rows(backbone.hooks.stack):
            sizes = {len(g) for g in request.groups}
            assert len(sizes) <= 1, "groups on row patches must be of equal size"
            return [list(range(len(request)))]
        by_size: dict[int, list[int]] = {}
        for i, group in enumerate(request.groups):
            by_size.setdefault(len(group), []).append(i)
        chunks = []
        for same in by_size.values():
            size = self._chunk(backbone, request.take(same))
            chunks += [same[k : k + size] for k in range(0, len(same), size)]
        return chunks

    def _chunk(self, backbone: Backbone, request: EditRequest) -> int:
        """Number of rows that fit into the budget: patch, gradient, two moments in float32."""
        if len(request) <= 1:
            return 1
        one = self.start(backbone, request.take([0]))
        numbers = sum(p.numel() for p in one.parameters())
        return int(max(1, min(len(request), BUDGET // (16 * max(1, numbers)))))


def _has_rows(stack: Sequence[Hook]) -> bool:
    return any(isinstance(p, Rows) for p in stack)
