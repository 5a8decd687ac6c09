"""Gradient search in rows: many independent edits in one batch, each as if it were alone.

The losses of the rows are summed, so that one backward serves all. Adam is elementwise, the
gradient norm is clipped per row, and a row that has reached its goal is frozen while the others
continue. The model below the patch runs once.

Shapes: R rows (patches), B edits (rows[b] is the patch of edit b), M target tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from errata.core.errors import NotFinite
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.patch import Patch
from errata.core.types import Edit


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """lr: Adam's step. max_grad_norm: largest gradient norm of one row (0 = no clipping).

    stop_loss: a row stops when its edit loss is below it and every target token is the argmax.
    lr_scale: factor of the step per tensor, by its full name or by the last part of it.
    max_change: after each update no searched number is further from 0 than this (0 = no limit).
    """

    lr: float
    steps: int
    stop_loss: float = 1e-2
    max_grad_norm: float = 0.0
    eos: bool = True
    lr_scale: Mapping[str, float] | None = None
    max_change: float = 0.0


@dataclass(frozen=True)
class SearchLog:
    """Per row: number of updates, last loss of its edits, whether it reached the goal (both the
    loss and the argmax), and whether every target token is the argmax.
    """

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    reached: tuple[bool, ...]
    right: tuple[bool, ...]


def search(
    backbone: Backbone,
    groups: Sequence[Sequence[Edit]],
    patch: Patch,
    settings: SearchSettings,
    *,
    penalty: Callable[[], Tensor] | None = None,
    watch: Hook | None = None,
) -> SearchLog:
    """Trains the parameters of `patch` (leading dimension R) in place. Raises NotFinite.

    penalty: gives extra losses [R] after each forward. watch: a recorder that is applied during the
    forwards, for `penalty`.
    """
    batch, rows = encode_edits(backbone, groups, eos=settings.eos)
    entry = backbone.entry(patch)
    state: Batch | PrefixState = batch if entry is None else backbone.enter(batch, entry, rows=rows)
    count = len(groups)
    active = torch.ones(count, dtype=torch.bool, device=rows.device)
    steps = torch.zeros(count, dtype=torch.long, device=rows.device)
    optimiser = RowAdam(patch, settings)
    with torch.enable_grad(), backbone.applied(patch, watch):
        for turn in range(settings.steps + 1):
            logits = backbone.logits(state, rows=rows)
            loss_B, right_B = target_loss(logits, batch)
            loss_R = per_group(loss_B, rows, count)
            check_finite(loss_R, [g[0] for g in groups])
            right_R = per_group(right_B.float(), rows, count).eq(1)
            active = active & ~((loss_R.detach() < settings.stop_loss) & right_R)
            if turn == settings.steps or not bool(active.any()):
                break
            extra = 0.0 if penalty is None else penalty().to(loss_R.device).sum()
            optimiser.step(loss_R.sum() + extra, active)
            steps += active.long()
    return SearchLog(
        tuple(steps.tolist()),
        tuple(loss_R.tolist()),
        tuple((~active).tolist()),
        tuple(right_R.tolist()),
    )


def encode_edits(
    backbone: Backbone, groups: Sequence[Sequence[Edit]], *, eos: bool
) -> tuple[Batch, Tensor]:
    """The edits of all groups as one batch, and the group of each [B]."""
    flat = [(r, e) for r, g in enumerate(groups) for e in g]
    index = [r for r, _ in flat]
    batch = backbone.encode(
        [e.prompt for _, e in flat], [e.target for _, e in flat], eos=eos, rows=index
    )
    return batch, torch.tensor(index, device=batch.ids.device)


def target_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """([B] mean negative log-likelihood of the target, [B] whether all its tokens are argmax)."""
    device = logits.device
    longest = max(len(t) for t in batch.targets)
    ids = torch.zeros(batch.size, longest, dtype=torch.long, device=device)
    real = torch.zeros(batch.size, longest, device=device)
    for b, target in enumerate(batch.targets):
        ids[b, : len(target)] = torch.tensor(target, device=device)
        real[b, : len(target)] = 1.0
    used = logits[:, :longest]
    nll = nn.functional.cross_entropy(used.transpose(1, 2), ids, reduction="none")
    right = (used.argmax(-1) == ids) | (real == 0)
    return (nll * real).sum(1) / real.sum(1), right.all(1)


def per_group(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """[B] -> [R] mean over the edits of each row."""
    rows = rows.to(values.device)
    total = torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
    return total / torch.bincount(rows, minlength=count).clamp(min=1)


def check_finite(loss_E: Tensor, edits: Sequence[Edit]) -> None:
    """Raises NotFinite, naming the first of the edits whose loss [E] is no number any more."""
    bad = (~torch.isfinite(loss_E)).nonzero()
    if len(bad):
        edit = edits[int(bad[0])]
        raise NotFinite(
            f"the loss of edit '{edit.id or edit.prompt.text[:60]}' became "
            f"{loss_E[int(bad[0])].item()} during the search. Lower the step size (--set lr=...), "
            "or load the model with --dtype float32."
        )


def generator(seed: int, *names: object) -> torch.Generator:
    """A random generator that depends on (seed, names) alone, not on what was drawn before."""
    text = "|".join(str(n) for n in (seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class RowAdam:
    """Adam (Kingma and Ba 2015, no weight decay) with independent rows.

    It is torch's fused Adam, which is elementwise. Two things are done here per row: clipping its
    gradient, and restoring a finished row after the step.
    """

    def __init__(self, patch: nn.Module, settings: SearchSettings) -> None:
        scale = settings.lr_scale or {}
        named = [(n, p) for n, p in patch.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.settings = settings
        factors = [scale.get(n, scale.get(n.rsplit(".", 1)[-1], 1.0)) for n, _ in named]
        groups = [
            {"params": [p], "lr": settings.lr * f}
            for p, f in zip(self.parameters, factors, strict=True)
        ]
        self.adam = torch.optim.Adam(groups, lr=settings.lr, fused=True)

    def step(self, loss: Tensor, active: Tensor) -> None:
        """One update of the active rows."""
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = (
                torch.zeros_like(p) if g is None else g.contiguous()
            )  # the fused kernel ignores strides
        if self.settings.max_grad_norm:
            self._clip()
        done = (~active).nonzero()[:, 0]
        kept = [p.detach()[done.to(p.device)] for p in self.parameters] if len(done) else []
        self.adam.step()
        with torch.no_grad():
            if most := self.settings.max_change:
                for p in self.parameters:
                    p.clamp_(-most, most)
            for p, old in zip(self.parameters, kept, strict=False):
                p[done.to(p.device)] = old

    def _clip(self) -> None:
        """Keeps each row's gradient norm below the limit."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1).cpu() for g in grads]).norm(dim=0)
        scale = (self.settings.max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        for g in grads:
            g.mul_(scale.to(g.device).view(-1, *[1] * (g.dim() - 1)))
