"""Searching the vectors that make a model say the targets: many edits at once, each as if alone.

Source: `compute_z` of MEMIT (kmeng01/memit 80426fd), `compute_v` of ROME (kmeng01/rome 0874014),
`compute_zs` of PMET (xpq-tech/PMET 80643f2), and what UniKE changed (gxx27/UniKE f8331cb,
`scaled`). A vector delta is added to a site's output at one token of every row: the edit's prompt
behind each beginning, and "SUBJECT is a", which must go on as before. Per edit the loss is

    mean over beginnings of the target's NLL per token + kl_factor * KL(now || before) + decay

with the KL at the subject's last token, the update is Adam's, the search ends below `stop_loss`
before a backward, and after each update |delta| <= clamp * |h0|, h0 being the output in the bare
prompt. There the model runs whole, once per edit and step; here the rows of all edits are one batch
that is entered once above the last part that delta does not change, the head runs where the target
is predicted, and every edit has its own delta, clamp and stop.

Shapes: E edits, B rows (beginnings and essence of all edits), M target tokens, V vocabulary, d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit.context_templates import columns, prefixed, span_of
from errata.core.errors import NotFinite
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.types import Edit, Prompt

ROWS = 512  # rows that are searched together


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """sites: where a delta is added. decay: `linear` weight_decay |delta| / |h0|^2 (ROME, MEMIT,
    PMET) or `squared` weight_decay (|delta| / |h0|)^2. ease: PMET's rule, once all target tokens
    are the likeliest the NLL counts a tenth, and the search ends if the KL term is at most 0.01.
    scaled: UniKE's steps, which grow with |h0| beyond 100.
    """

    sites: tuple[str, ...]
    lr: float
    steps: int
    clamp: float
    weight_decay: float
    decay: Literal["linear", "squared"] = "linear"
    kl_factor: float = 0.0625
    essence: str = "{} is a"
    stop_loss: float = 0.05
    token: str = "subject"
    eos: bool = True
    ease: bool = False
    scaled: bool = False


@dataclass(frozen=True, eq=False)
class FoundValues:
    """start [E, d] (h0) and found [E, d] (h0 + delta) per site, float32; log: one dict per edit."""

    start: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    log: tuple[dict[str, Any], ...]


class ColumnRecorder(Hook):
    """Changes nothing; `x[site]` [B, n], `y[site]` [B, o] are what passed at a column per row."""

    def __init__(self, sites: Sequence[str], columns_B: Tensor) -> None:
        super().__init__(tuple(sites))
        self.columns_B = columns_B
        self.x: dict[str, Tensor] = {}
        self.y: dict[str, Tensor] = {}

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(x.shape[0], device=x.device), self.columns_B.to(x.device)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        self.x[site] = x[self.place(x)].detach().float()
        self.y[site] = y[self.place(y)].detach().float()
        return y


class ColumnShift(ColumnRecorder):
    """Adds `delta[site]` [E, d] of a row's edit at the row's column."""

    def __init__(self, sites: Sequence[str], columns_B: Tensor, owner_B: Tensor) -> None:
        super().__init__(sites, columns_B)
        self.owner_B = owner_B
        self.delta: dict[str, Tensor] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        here = y[self.place(y)]
        self.y[site] = here.detach().float()
        if site not in self.delta:
            return y
        own = self.delta[site][self.owner_B.to(y.device)]
        return y.index_put(self.place(y), here + own.to(y.device, y.dtype))


@dataclass(frozen=True, eq=False)
class ValueBatch:
    """The rows of all edits. owner: whose row; bare [E]: the row without a beginning.

    essence [B]: rows that must go on as before; they end at the subject, so that the first logits
    of a row are those that count. ids, real [B, M]: the targets.
    """

    batch: Batch
    rows_B: Tensor
    owner_B: Tensor
    columns_B: Tensor
    essence_B: Tensor
    bare_E: Tensor
    ids_BM: Tensor
    real_BM: Tensor


def question(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    beginnings: Sequence[str],
    settings: ValueSettings,
) -> ValueBatch:
    """`edits`: (patch row, edit)."""
    prompts: list[Prompt] = []
    targets: list[str] = []
    spans: list[str | None] = []
    owner: list[int] = []
    for e, (_, edit) in enumerate(edits):
        span = span_of(edit, settings.token)
        asked = [prefixed(edit.prompt, prefix) for prefix in beginnings]
        if span is not None and settings.kl_factor:
            text = settings.essence.replace("{}", span)
            asked.append(Prompt((*edit.prompt.images, text)))
        prompts += asked
        targets += [edit.target] * len(beginnings) + [""] * (len(asked) - len(beginnings))
        spans += [span] * len(asked)
        owner += [e] * len(asked)
    rows = [edits[e][0] for e in owner]
    batch = backbone.encode(prompts, targets, eos=settings.eos, rows=rows)
    device = batch.ids.device
    where = columns(backbone, batch, spans)
    kept = torch.tensor([not t for t in targets], device=device)
    ids, real = _targets(batch)
    batch = replace(
        batch,
        lengths=torch.where(kept, where + 1, batch.lengths),
        targets=tuple(t[:-1] for t in batch.targets),
    )
    first = [owner.index(e) for e in range(len(edits))]
    return ValueBatch(
        batch, torch.tensor(rows, device=device), torch.tensor(owner, device=device), where, kept,
        torch.tensor(first, device=device), ids, real,
    )  # fmt: skip


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    longest = max(len(t) for t in batch.targets)
    ids = torch.zeros(batch.size, longest, dtype=torch.long)
    real = torch.zeros(batch.size, longest)
    for b, target in enumerate(batch.targets):
        ids[b, : len(target)] = torch.tensor(target, dtype=torch.long)
        real[b, : len(target)] = 1.0
    return ids.to(batch.ids.device), real.to(batch.ids.device)


def search(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    beginnings: Sequence[str],
    settings: ValueSettings,
) -> FoundValues:
    """The values of all edits, on top of what is applied. Raises BadEdit, NotFinite."""
    size = max(1, ROWS // (len(beginnings) + 1))
    parts = [
        _search(backbone, edits[i : i + size], beginnings, settings)
        for i in range(0, len(edits), size)
    ]
    start, found = (
        {s: torch.cat([getattr(p, name)[s] for p in parts]) for s in settings.sites}
        for name in ("start", "found")
    )
    return FoundValues(start, found, tuple(line for p in parts for line in p.log))


def _search(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    beginnings: Sequence[str],
    settings: ValueSettings,
) -> FoundValues:
    q = question(backbone, edits, beginnings, settings)
    shift = ColumnShift(settings.sites, q.columns_B, q.owner_B)
    entry = backbone.entry(shift)
    state: Batch | PrefixState = q.batch
    if entry is not None:
        state = backbone.enter(q.batch, entry, rows=q.rows_B)
    places = {s: backbone.device_of(s) for s in settings.sites}
    deltas = ValueOptimizer(
        {s: torch.zeros(len(edits), backbone.width, device=p) for s, p in places.items()}
    )
    goal = ValueTarget(q, settings, len(edits))
    with torch.enable_grad(), backbone.applied(shift):
        for step in range(settings.steps):
            shift.delta = deltas.leaves()
            logits = backbone.logits(state, rows=q.rows_B)
            if not step:
                bare = {s: shift.y[s][q.bare_E.to(shift.y[s].device)] for s in settings.sites}
                deltas.begin(bare, settings)
            loss_E = goal.loss(logits, shift.delta, deltas.start)
            _check_finite(loss_E, edits)
            goal.stop(loss_E)
            if step == settings.steps - 1 or not bool(goal.active_E.any()):
                break
            total = loss_E[goal.active_E].sum()
            grads = torch.autograd.grad(total, list(shift.delta.values()))
            deltas.step(dict(zip(shift.delta, grads, strict=True)), goal.active_E, step)
    found = {s: deltas.start[s] + deltas.shift(s) for s in settings.sites}
    return FoundValues(deltas.start, found, tuple(goal.log(e, deltas) for e in range(len(edits))))


class ValueOptimizer:
    """One free vector per edit and site, and Adam on it (Kingma and Ba 2015), row by row.

    With `scaled`, what is added is scale * delta with scale = |h0| / 100 within [1, 5]; where that
    exceeds 1 the step starts at lr * scale^0.35 (of the largest scale) and falls along a cosine.
    """

    def __init__(self, zero: Mapping[str, Tensor]) -> None:
        self.free = dict(zero)
        self.m = {s: torch.zeros_like(z) for s, z in zero.items()}
        self.v = {s: torch.zeros_like(z) for s, z in zero.items()}
        self.scale = {s: torch.ones(len(z), 1, device=z.device) for s, z in zero.items()}
        self.start: dict[str, Tensor] = {}
        self.steps_E = torch.zeros(len(next(iter(zero.values()))), dtype=torch.long)
        self.clamped_E = torch.zeros_like(self.steps_E)

    def begin(self, start: Mapping[str, Tensor], settings: ValueSettings) -> None:
        """Once what the vectors are added to is known: its norm sets scale, step and clamp."""
        self.settings, self.start = settings, dict(start)
        if settings.scaled:
            self.scale = {
                s: (h.norm(dim=1, keepdim=True) / 100.0).clamp(1.0, 5.0) for s, h in start.items()
            }

    def shift(self, site: str) -> Tensor:
        """[E, d] what is added."""
        return self.scale[site] * self.free[site]

    def leaves(self) -> dict[str, Tensor]:
        return {s: self.shift(s).detach().requires_grad_(True) for s in self.free}

    def rate(self, step: int) -> Tensor:
        """[E, 1] the step size of each edit."""
        widest = torch.stack([k.cpu() for k in self.scale.values()]).amax(0)
        peak = self.settings.lr * widest**0.35
        fall = 0.45 * (1 + math.cos(math.pi * step / self.settings.steps)) + 0.1 if step else 1.0
        return torch.where(widest > 1, peak * fall, torch.full_like(peak, self.settings.lr))

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], active_E: Tensor, step: int) -> None:
        """One update of the active edits, then their clamp."""
        rate, t = self.rate(step), step + 1
        for site, grad in grads.items():
            g = self.scale[site] * grad.float()
            m, v = self.m[site], self.v[site]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            size = (v / (1 - 0.999**t)).sqrt() + 1e-8
            moved = self.free[site] - rate.to(g.device) * (m / (1 - 0.9**t)) / size
            limit = self.start[site].norm(dim=1, keepdim=True)
            limit = self.settings.clamp * (
                limit.clamp(max=500.0) if self.settings.scaled else limit
            )
            norm = (self.scale[site] * moved).norm(dim=1, keepdim=True)
            moved = moved * (limit / norm.clamp(min=1e-30)).clamp(max=1.0)
            on = active_E.to(g.device)
            self.free[site] = torch.where(on[:, None], moved, self.free[site])
            self.clamped_E += ((norm > limit)[:, 0] & on).cpu().long()
        self.steps_E += active_E.cpu().long()


class ValueTarget:
    """The loss of each edit, and when its search ends."""

    def __init__(self, q: ValueBatch, settings: ValueSettings, edits: int) -> None:
        self.q, self.settings = q, settings
        device = q.owner_B.device
        self.active_E = torch.ones(edits, dtype=torch.bool, device=device)
        self.weight_E = torch.ones(edits, device=device)
        self.before: Tensor | None = None
        self.parts: dict[str, Tensor] = {}

    def loss(
        self, logits_BMV: Tensor, shift: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        """[E]; the parts of active edits are kept for the log."""
        q, s = self.q, self.settings
        place = logits_BMV.device
        asked = ~q.essence_B
        owner = q.owner_B[asked].to(place)
        ids, real = q.ids_BM[asked].to(place), q.real_BM[asked].to(place)
        logp = logits_BMV[asked.to(place)].log_softmax(-1)
        nll_B = -(logp.gather(-1, ids[..., None])[..., 0] * real).sum(1) / real.sum(1)
        right_B = ((logp.argmax(-1) == ids) | (real == 0)).all(1)
        count = torch.bincount(owner, minlength=len(self.active_E))
        nll = torch.zeros(len(count), device=place).index_add(0, owner, nll_B) / count
        wrong = torch.zeros(len(count), device=place).index_add(0, owner, (~right_B).float())
        kl = self._kl(logits_BMV)
        decay = torch.zeros_like(nll)
        for site, vector in shift.items():
            norm, base = vector.norm(dim=1), start[site].norm(dim=1)
            power = (norm / base).square() if s.decay == "squared" else norm / base.square()
            decay = decay + s.weight_decay * power.to(place)
        parts = {"nll": nll, "kl": kl, "decay": decay, "right": (wrong == 0).float()}
        on = self.active_E.to(place)
        self.parts = {
            k: torch.where(on, v.detach(), self.parts.get(k, v.detach())) for k, v in parts.items()
        }
        return self.weight_E.to(place) * nll + s.kl_factor * kl + decay

    def _kl(self, logits_BMV: Tensor) -> Tensor:
        """[E] KL(now || before) behind the subject alone; 0 for edits without one."""
        place = logits_BMV.device
        total = torch.zeros(len(self.active_E), device=place)
        kept = self.q.essence_B.to(place)
        if not bool(kept.any()):
            return total
        now = logits_BMV[kept, 0].log_softmax(-1)
        if self.before is None:
            self.before = now.detach()
        each = (now.exp() * (now - self.before)).sum(-1)
        return total.index_add(0, self.q.owner_B.to(place)[kept], each)

    def stop(self, loss_E: Tensor) -> None:
        """Ends the search of edits that are there; eases the loss of the others where wanted."""
        s = self.settings
        done = loss_E.detach() < s.stop_loss
        if s.ease:
            right = self.parts["right"].bool()
            done = done | (right & (s.kl_factor * self.parts["kl"] <= 0.01))
            self.weight_E = torch.where(right, 0.1, 1.0).to(self.weight_E)
        self.active_E = self.active_E & ~done.to(self.active_E.device)

    def log(self, edit: int, deltas: ValueOptimizer) -> dict[str, Any]:
        """What there is to know about one edit's search."""
        size = {s: float(deltas.shift(s)[edit].norm()) for s in deltas.start}
        base = {s: float(deltas.start[s][edit].norm()) for s in deltas.start}
        first = next(iter(size))
        return {
            "steps": int(deltas.steps_E[edit]),
            "nll": round(float(self.parts["nll"][edit]), 5),
            "kl": round(float(self.parts["kl"][edit]), 5),
            "reached": bool(self.parts["right"][edit]),
            "stopped": not bool(self.active_E[edit]),
            "start_norm": round(base[first], 4),
            "delta_norm": round(size[first], 4),
            "clamped": int(deltas.clamped_E[edit]),
        }


def _check_finite(loss_E: Tensor, edits: Sequence[tuple[int, Edit]]) -> None:
    bad = (~torch.isfinite(loss_E)).nonzero()
    if len(bad):
        edit = edits[int(bad[0])][1]
        raise NotFinite(
            f"the loss of edit '{edit.id or edit.prompt.text[:60]}' became "
            f"{loss_E[int(bad[0])].item()} during the search. Lower the step size (--set lr=...), "
            "or load the model with --dtype float32."
        )
