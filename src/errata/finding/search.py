"""Gradient search in rows: many independent edits found in one batch, each as if it were alone.

The losses of the rows are summed, so one backward serves all; Adam is elementwise, the gradient norm is
clipped per row, and a row that has reached its goal is frozen while the others go on. The part of the model
below the patch runs once.

Shapes: R rows (patches), B edits (rows[b] is the patch of edit b), M target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from errata.core.backbone import Backbone, Batch, Entered
from errata.core.errors import NotFinite
from errata.core.patch import Patch
from errata.core.types import Edit


@dataclass(frozen=True, kw_only=True)
class Settings:
    """lr: Adam's step. clip: largest gradient norm of one row (0 = none). stop_loss: a row stops when its
    edit loss is below it and every target token is the argmax. lr_scale: per tensor name."""

    lr: float
    steps: int
    stop_loss: float = 1e-2
    clip: float = 0.0
    eos: bool = True
    lr_scale: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Log:
    """Per row: updates made, last edit loss, whether the goal was reached."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    reached: tuple[bool, ...]


def search(
    backbone: Backbone,
    groups: Sequence[Sequence[Edit]],
    patch: Patch,
    settings: Settings,
    *,
    penalty: Callable[[], Tensor] | None = None,
    watch: Patch | None = None,
) -> Log:
    """Trains the parameters of `patch` (leading dimension R) in place. `penalty` gives [R] extra losses after
    each forward; `watch` is a recording patch that is live during the forwards. Raises NotFinite."""
    batch, rows = encode_edits(backbone, groups, eos=settings.eos)
    entry = backbone.entry(patch)
    state: Batch | Entered = batch if entry is None else backbone.enter(batch, entry, rows=rows)
    count = len(groups)
    active = torch.ones(count, dtype=torch.bool, device=rows.device)
    steps = torch.zeros(count, dtype=torch.long, device=rows.device)
    optimiser = RowAdam(patch, settings)
    for turn in range(settings.steps + 1):
        with torch.enable_grad(), backbone.applied(patch, watch):
            logits = backbone.logits(state, rows=rows)
            loss_B, right_B = target_loss(logits, batch)
            loss_R = per_group(loss_B, rows, count)
            extra = penalty() if penalty is not None else None
        _check_finite(loss_R, groups)
        active = active & ~((loss_R.detach() < settings.stop_loss) & per_group(right_B.float(), rows, count).eq(1))
        if turn == settings.steps or not bool(active.any()):
            break
        total = loss_R if extra is None else loss_R + extra.to(loss_R.device)
        optimiser.step(total.sum(), active)
        steps += active.long()
    return Log(tuple(steps.tolist()), tuple(loss_R.tolist()), tuple((~active).tolist()))


def encode_edits(backbone: Backbone, groups: Sequence[Sequence[Edit]], *, eos: bool) -> tuple[Batch, Tensor]:
    """The edits of all groups as one batch, and which group each row belongs to [B]."""
    flat = [(r, e) for r, g in enumerate(groups) for e in g]
    index = [r for r, _ in flat]
    batch = backbone.encode([e.prompt for _, e in flat], [e.target for _, e in flat], eos=eos, rows=index)
    return batch, torch.tensor(index, device=batch.ids.device)


def target_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """([B] mean negative log-likelihood over target tokens, [B] True where all of them are the argmax)."""
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


def _check_finite(loss_R: Tensor, groups: Sequence[Sequence[Edit]]) -> None:
    bad = (~torch.isfinite(loss_R)).nonzero()
    if len(bad):
        edit = groups[int(bad[0])][0]
        raise NotFinite(
            f"the loss of edit '{edit.id or edit.prompt.text[:60]}' became {float(loss_R[int(bad[0])])} during the search. "
            "Lower the step size (--set lr=...), or load the model with --dtype float32."
        )


class RowAdam:
    """Adam (Kingma and Ba 2015, no weight decay) whose rows do not see each other."""

    def __init__(self, patch: nn.Module, settings: Settings, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.named = [(n.rsplit(".", 1)[-1], p) for n, p in patch.named_parameters() if p.requires_grad]
        self.settings, self.betas = settings, betas
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for _, p in self.named]
        self.turn = 0

    def step(self, loss: Tensor, active: Tensor) -> None:
        """One update of the active rows."""
        grads = torch.autograd.grad(loss, [p for _, p in self.named], allow_unused=True)
        kept = [g if g is not None else torch.zeros_like(p) for g, (_, p) in zip(grads, self.named, strict=True)]
        scale = self._scale(kept)
        self.turn += 1
        b1, b2 = self.betas
        with torch.no_grad():
            for (name, p), g, (m, v) in zip(self.named, kept, self.moments, strict=True):
                rows = active.to(p.device).view(-1, *[1] * (p.dim() - 1))
                g = g if scale is None else g * scale.to(g.device).view(rows.shape)
                m.lerp_(g, 1 - b1)
                v.lerp_(g * g, 1 - b2)
                lr = self.settings.lr * (self.settings.lr_scale or {}).get(name, 1.0)
                update = (m / (1 - b1**self.turn)) / ((v / (1 - b2**self.turn)).sqrt() + 1e-8)
                p -= lr * update * rows

    def _scale(self, grads: Sequence[Tensor]) -> Tensor | None:
        """[R] factor that keeps each row's gradient norm below the limit."""
        if not self.settings.clip:
            return None
        norm = torch.stack([g.flatten(1).norm(dim=1).cpu() for g in grads]).norm(dim=0)
        return (self.settings.clip / norm.clamp(min=1e-12)).clamp(max=1.0)
