"""Base of editors that search a patch by gradient descent on the edits' loss.

With `lr=auto` the step fits the model: a tensor moves by `RATES[0]` times the root mean square of
the weights that it changes, per update. A group whose targets are not all answered greedily after
`steps` updates is searched again from the start with the next rate. So an edit is made with the
smallest of these steps that answers its target; `step_size` in the log says which one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from errata.core.editor import EditLog, Editor, EditRequest, EditResult
from errata.core.errors import BadSpec, NotFinite
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.patch import Patch
from errata.core.state import State
from errata.core.types import Edit
from errata.patches._parts import PartsPatch
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.training.optimise import SearchLog, SearchSettings, encode_edits, search

#: `lr=auto`: steps that are tried, as multiples of the weights' root mean square
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
#: `lr=auto`: the search is over when all target tokens are the argmax and the loss is below this
ANSWERED = 0.5


@dataclass(frozen=True, eq=False)
class Attempt:
    """A search of one group. rank: the better, the larger. answered: no larger step is needed."""

    result: EditResult
    rank: tuple[bool, float]
    answered: bool

    @classmethod
    def of(
        cls, patch: Patch, state: State | None, log: SearchLog, row: int, rate: float | None
    ) -> Attempt:
        steps, loss, right = log.steps[row], log.loss[row], log.right[row]
        logged = EditLog(steps, loss, log.reached[row])
        if rate is not None:
            logged = EditLog(steps, loss, right, {"step_size": rate})
        return cls(EditResult(patch, state, logged), (right, -loss), right and loss < ANSWERED)


class GradientEditor(Editor):
    """Subclasses implement `start`, the patch before the search; `losses` may add loss terms."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """lr: step size of Adam, or `auto`, which fits it to the model's weights and raises it
        until the target is answered greedily. steps: updates at most. stop_loss: an edit is done
        when its loss is below it and every target token is the most likely one. max_grad_norm:
        larger gradients of an edit are scaled down to this norm, 0 = no clipping. eos: the end
        token is part of the target.
        """

        renamed: ClassVar[Mapping[str, str]] = {"clip": "max_grad_norm"}
        lr: float | Literal["auto"] = "auto"
        steps: int = 25
        stop_loss: float = 1e-2
        max_grad_norm: float = 0.0
        eos: bool = True

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if (c.lr != "auto" and not c.lr > 0) or c.steps < 0:
            raise BadSpec(
                f"editor '{self.name}': lr={c.lr}, steps={c.steps} cannot be searched with. Give "
                "lr above 0 (or auto) and at least 0 steps."
            )

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        if not self.config.steps:
            idle |= dict.fromkeys(("lr", "stop_loss", "max_grad_norm"), "steps=0")
        return idle

    def settings(self) -> SearchSettings:
        """The settings of a search; with `lr=auto`, of its first attempt, before `weight_size`."""
        c = self.config
        return SearchSettings(
            lr=RATES[0] if c.lr == "auto" else c.lr,
            steps=c.steps,
            stop_loss=c.stop_loss,
            max_grad_norm=c.max_grad_norm,
            eos=c.eos,
        )

    def weight_size(self, backbone: Backbone, site: str, name: str) -> float:
        """With `lr=auto`: the step of a searched tensor of a site, for a rate of 1.

        The root mean square of the site's weights, or of what the tensor stands for.
        """
        return backbone.weight_rms(site)

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
        self, backbone: Backbone, request: EditRequest, patch: Patch, watch: Hook | None
    ) -> list[State | None]:
        """The state of each group for its next edit; `patch` is the searched row patch.

        watch: the recorder of `losses`, which holds the last forward, with the patch as it is.
        """
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
        if self.config.lr != "auto":
            return [a.result for a in self._attempt(backbone, request, None)]
        best: dict[int, Attempt] = {}
        left = list(range(len(request)))
        for number, rate in enumerate(RATES):
            # where row patches are live, group i is on row i, so that all are searched again
            index = list(range(len(request))) if _has_rows(backbone.hooks.stack) else left
            try:
                tried = self._attempt(backbone, request.take(index), rate)
            except NotFinite:
                if not number:
                    raise
                break
            for i, one in zip(index, tried, strict=True):
                if i in left and (i not in best or one.rank > best[i].rank):
                    best[i] = one
            left = [i for i in left if not best[i].answered]
            if not left:
                break
        return [best[i].result for i in range(len(request))]

    def _attempt(
        self, backbone: Backbone, request: EditRequest, rate: float | None
    ) -> list[Attempt]:
        """One search of every group. rate: with `lr=auto`."""
        patch = backbone.place(self.start(backbone, request))
        if not any(True for _ in patch.parameters()):
            raise BadSpec(
                f"editor '{self.name}': no site is trained with these settings. Name at least one "
                "in 'layers' and 'parts'."
            )
        penalty, watch = self.losses(backbone, request, patch)
        settings = self.settings()
        if rate is not None:
            settings = replace(settings, lr=rate, lr_scale=self._sizes(backbone, patch, settings))
        log = search(backbone, request.groups, patch, settings, penalty=penalty, watch=watch)
        states = self.next_states(backbone, request, patch, watch)
        return [Attempt.of(patch.row(r), state, log, r, rate) for r, state in enumerate(states)]

    def _sizes(
        self, backbone: Backbone, patch: PartsPatch, settings: SearchSettings
    ) -> dict[str, float]:
        """Parameter -> its step for a rate of 1."""
        factors = settings.lr_scale or {}
        return {
            f"parts_.{patch.names[site]}.{name}": factors.get(name, 1.0)
            * self.weight_size(backbone, site, name)
            for site in patch.names
            for name, tensor in patch.part(site).items()
            if tensor.requires_grad
        }

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
        """Number of groups whose rows fit into the memory that a batch may take."""
        if len(request) <= 1:
            return 1
        return backbone.fitting(self._bytes(backbone, request), len(request))

    def _bytes(self, backbone: Backbone, request: EditRequest) -> float:
        """Of all groups: patch, gradient, two moments, and what the backward keeps."""
        one = self.start(backbone, request.take([0]))
        numbers = sum(p.numel() for p in one.parameters())
        batch, _ = encode_edits(backbone, request.groups, eos=self.config.eos)
        search = backbone.bytes_to_search(batch, backbone.entry(one))
        return 16 * numbers * len(request) + search

    def need(self, backbone: Backbone, edits: Sequence[Edit], state: State | None = None) -> float:
        return self._bytes(backbone, EditRequest.of([[e] for e in edits], [state] * len(edits)))


def _has_rows(stack: Sequence[Hook]) -> bool:
    return any(isinstance(p, Rows) for p in stack)
