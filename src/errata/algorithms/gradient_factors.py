"""Inputs and output gradients of linear sites on edits: the factors of a matrix's gradient.

For a linear map y_t = W x_t the gradient of a loss is sum_t d_t x_t^T with d_t = dl/dy_t: two
vectors per token instead of a matrix (MEND and KE start from them). One forward and one backward
serve any number of independent edits, one row each.

Shapes: B edits, T columns, n inputs and o outputs of a site, R patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from errata.core.errors import NotFinite
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.patch import Patch
from errata.core.types import Edit
from errata.patches.delta import Delta
from errata.training.optimise import target_loss

CHUNK = 16  # groups whose gradients are taken together


class Factors(NamedTuple):
    """x [B, T, n] and d [B, T, o], float32, and used [B, T]: tokens where neither is all zero.

    Unused are padding, and tokens that the loss does not depend on (in the last block all but those
    that predict the target).
    """

    x: Tensor
    d: Tensor
    used: Tensor


class GradientRecorder(Hook):
    """Records x, and adds a zero to each site's output whose gradient is that of the output."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__(tuple(sites))
        self.x: dict[str, Tensor] = {}
        self.zero: dict[str, Tensor] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.x[site] = x.detach().float()
        self.zero[site] = torch.zeros_like(y, dtype=torch.float32, requires_grad=True)
        return y + self.zero[site].to(y.dtype)


def factors(
    backbone: Backbone,
    state: Batch | PrefixState,
    sites: Sequence[str],
    *,
    rows: Tensor | None = None,
) -> dict[str, Factors]:
    """Site -> factors of each row's loss, the mean negative log-likelihood of its target.

    Of the model with what is applied. Raises NotFinite.
    """
    taps = GradientRecorder(sites)
    with torch.enable_grad(), backbone.applied(taps):
        logits = backbone.logits(state, rows=rows)
        batch = state.batch if isinstance(state, PrefixState) else state
        loss_B, _ = target_loss(logits, batch)
        grads = torch.autograd.grad(loss_B.sum(), [taps.zero[s] for s in sites])
    out = {}
    for site, d in zip(sites, grads, strict=True):
        x = taps.x[site]
        if not bool(torch.isfinite(d).all()):
            raise NotFinite(
                f"the gradient of an edit at {site} is not finite. Load the model with --dtype "
                "float32."
            )
        out[site] = Factors(x, d, x.ne(0).any(-1) & d.ne(0).any(-1))
    return out


def group_factors(
    backbone: Backbone, groups: Sequence[Sequence[Edit]], sites: Sequence[str], *, eos: bool
) -> Iterator[dict[str, Factors]]:
    """The factors of each group, one row per edit, on top of what is applied.

    CHUNK groups are run together.
    """
    floor = floor_of(sites)
    for start in range(0, len(groups), CHUNK):
        part = groups[start : start + CHUNK]
        flat = [(r, e) for r, g in enumerate(part, start) for e in g]
        index = [r for r, _ in flat]
        batch = backbone.encode(
            [e.prompt for _, e in flat], [e.target for _, e in flat], eos=eos, rows=index
        )
        rows = torch.tensor(index, device=batch.ids.device)
        all_rows = factors(backbone, backbone.enter(batch, floor, rows=rows), sites, rows=rows)
        for r in range(start, start + len(part)):
            rows_of = [b for b, i in enumerate(index) if i == r]
            yield {s: Factors(*(v[rows_of] for v in f)) for s, f in all_rows.items()}


def floor_of(sites: Sequence[str]) -> int:
    """The lowest text block among sites `text.{i}...`."""
    return min(int(site.split(".")[1]) for site in sites)


class LiveDelta(Delta):
    """A row delta whose tensors keep their graph, for training the network that made them."""

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor]], rows: int) -> None:
        Patch.__init__(self, tuple(parts))
        self.rows = rows
        self.live = {site: dict(tensors) for site, tensors in parts.items()}

    def part(self, site: str) -> Any:
        return self.live[site]


def delta_of(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], index: Sequence[int]) -> Delta:
    """The sum of the updates of rows `index`, as one low-rank delta.

    parts: site -> (A [B, r, n], B [B, r, o], used [B, r]); unused ranks are left out.
    """
    out = {}
    for site, (a, b, used) in parts.items():
        rows = [(a[i][used[i]], b[i][used[i]]) for i in index]
        out[site] = {
            "A": torch.cat([x for x, _ in rows]).detach().contiguous(),
            "B": torch.cat([y for _, y in rows]).detach().transpose(0, 1).contiguous(),
        }
    return Delta(out)
