"""Optimises the value vector z of every edit (`compute_z` in MEMIT), in one batch.

Source: `compute_z` of MEMIT (kmeng01/memit 80426fd), `compute_v` of ROME (kmeng01/rome 0874014),
`compute_zs` of PMET (xpq-tech/PMET 80643f2), and the changes of UniKE (gxx27/UniKE f8331cb,
`scaled`). A vector delta is added to a site's output at one token of every row. The rows of an edit
are its prompt behind each context template, and the KL prompt ("SUBJECT is a"), whose next-token
distribution is to be preserved. The loss of an edit is

    mean over templates of the target's NLL per token + kl_factor * KL(now || before) + decay

with the KL term at the subject's last token. The update is Adam's. A search ends when the loss is
below `stop_loss`, before the backward. After each update |delta| is clamped to clamp * |h0|, where
h0 is the site's output in the bare prompt (without template).

Differences: there the whole model runs once per edit and step. Here the rows of all edits are one
batch, which is entered once at the highest block that delta does not change. Above it, the columns
before delta's run once, where the model allows it (`Backbone.suffix`). The head runs only where the
target is predicted, and every edit has a delta, a clamp and a stop of its own. Once half of the
edits that run have reached their goal, the rows of the others are entered alone.

Shapes: E edits, B rows of all edits, M target tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit.context_templates import (
    lookup_columns,
    lookup_span,
    with_template,
)
from errata.algorithms.locate_then_edit.stream import stream_of
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState, SuffixState
from errata.core.model.budget import in_parts
from errata.core.types import Edit, Prompt
from errata.training.optimise import check_finite

ROWS = 512  # rows that are searched together, where memory allows it
REACH = 4.0  # `lr=auto`: norms of the hidden state that a search can go in all its steps


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """sites: where a delta is added. lr: step size of Adam, `auto`: it fits the hidden
    states (see `ValueOptimizer`). kl_prompt: `{}` stands for the subject. decay: `linear`
    weight_decay |delta| / |h0|^2 (ROME, MEMIT, PMET) or `squared` weight_decay (|delta| / |h0|)^2.
    downweight_when_right: PMET's rule; once all target tokens are the argmax, the NLL counts a
    tenth, and the search ends if the KL term is at most 0.01. scaled: UniKE's steps, which grow
    with |h0| beyond 100. token, eos: as in `LocateThenEdit.Config`.
    """

    sites: tuple[str, ...]
    lr: float | Literal["auto"]
    steps: int
    clamp: float
    weight_decay: float
    decay: Literal["linear", "squared"] = "linear"
    kl_factor: float = 0.0625
    kl_prompt: str = "{} is a"
    stop_loss: float = 0.05
    token: str = "subject"
    eos: bool = True
    downweight_when_right: bool = False
    scaled: bool = False


@dataclass(frozen=True, eq=False)
class ValueResult:
    """Per site start [E, d] (h0) and value [E, d] (z = h0 + delta), float32; a log per edit.

    Behind the searched sites: the hidden states that their outputs are added to, without the deltas
    and with them.
    """

    start: Mapping[str, Tensor]
    value: Mapping[str, Tensor]
    log: tuple[dict[str, Any], ...]


class ColumnRecorder(Hook):
    """Records one column per row: `x[site]` [B, n] of the input, `y[site]` [B, o] of the output."""

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
    """Adds delta[site][e] to the output at the row's column, where e is the edit of the row."""

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
    """The rows of all edits.

    rows_B: the patch row; owner_B: the edit of each row; columns_B: the column of the delta.
    is_kl_B: rows of the KL prompt, which end at the subject, so that their first logits count.
    bare_E: the row of each edit without template. ids_BM, real_BM: the targets, and their mask.
    """

    batch: Batch
    rows_B: Tensor
    owner_B: Tensor
    columns_B: Tensor
    is_kl_B: Tensor
    bare_E: Tensor
    ids_BM: Tensor
    real_BM: Tensor


def value_batch(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    settings: ValueSettings,
) -> ValueBatch:
    """The rows of these edits, each given as (patch row, edit)."""
    prompts: list[Prompt] = []
    targets: list[str] = []
    spans: list[str | None] = []
    owner: list[int] = []
    for e, (_, edit) in enumerate(edits):
        span = lookup_span(edit, settings.token)
        own = [with_template(edit.prompt, template) for template in templates]
        if span is not None and settings.kl_factor:
            text = settings.kl_prompt.replace("{}", span)
            own.append(Prompt((*edit.prompt.images, text)))
        prompts += own
        targets += [edit.target] * len(templates) + [""] * (len(own) - len(templates))
        spans += [span] * len(own)
        owner += [e] * len(own)
    rows = [edits[e][0] for e in owner]
    batch = backbone.encode(prompts, targets, eos=settings.eos, rows=rows)
    device = batch.ids.device
    columns = lookup_columns(backbone, batch, spans)
    is_kl = torch.tensor([not t for t in targets], device=device)
    ids, real = _targets(batch)
    batch = replace(
        batch,
        lengths=torch.where(is_kl, columns + 1, batch.lengths),
        targets=tuple(t[:-1] for t in batch.targets),
    )
    first = [owner.index(e) for e in range(len(edits))]
    return ValueBatch(
        batch, torch.tensor(rows, device=device), torch.tensor(owner, device=device), columns,
        is_kl, torch.tensor(first, device=device), ids, real,
    )  # fmt: skip


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Target ids [B, M], padded with 0, and their mask [B, M]."""
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
    templates: Sequence[str],
    settings: ValueSettings,
) -> ValueResult:
    """The values of all edits, on top of what is applied. Raises BadEdit, NotFinite."""
    size = max(1, ROWS // (len(templates) + 1))
    parts: list[ValueResult] = []
    for i in range(0, len(edits), size):
        for part in _fitting(backbone, edits[i : i + size], templates, settings):
            parts += in_parts(
                part,
                lambda few: [_search(backbone, few, templates, settings)],
                f"one edit of {backbone.name}, searched in {len(templates) + 1} rows",
            )
    return ValueResult(
        {s: torch.cat([p.start[s] for p in parts]) for s in parts[0].start},
        {s: torch.cat([p.value[s] for p in parts]) for s in parts[0].value},
        tuple(line for p in parts for line in p.log),
    )


def _fitting(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    settings: ValueSettings,
) -> list[Sequence[tuple[int, Edit]]]:
    """The edits in parts whose rows fit into the memory that a batch may take."""
    if len(edits) == 1:
        return [edits]
    size = search_bytes(backbone, edits, templates, settings, enough=backbone.budget)
    each = backbone.fitting(size, len(edits))
    return [edits[i : i + each] for i in range(0, len(edits), each)]


def search_bytes(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    settings: ValueSettings,
    *,
    enough: float = 0.0,
) -> float:
    """Bytes that the search of all these edits in one batch takes; a rough count up to `enough`."""
    q = value_batch(backbone, edits, templates, settings)
    entry = backbone.entry(ColumnShift(settings.sites, q.columns_B, q.owner_B))
    whole = backbone.bytes_to_search(q.batch, entry)
    if whole <= enough or entry is None:
        return whole
    # columns in front of delta may run once: one edit shows whether they do
    first = value_batch(backbone, edits[:1], templates, settings)
    state, _ = _entered(backbone, first, settings.sites)
    if not isinstance(state, SuffixState):
        return whole
    ends_B = q.batch.lengths + torch.tensor([len(t) for t in q.batch.targets]).to(q.columns_B)
    runs = float((ends_B - q.columns_B).clamp(min=1).float().mean())
    return backbone.bytes_to_search(q.batch, entry, runs)


def _search(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    settings: ValueSettings,
) -> ValueResult:
    q = value_batch(backbone, edits, templates, settings)
    streams = {s: stream_of(backbone, s) for s in settings.sites}
    seen = tuple(dict.fromkeys((*settings.sites, *streams.values())))
    state, shift = _entered(backbone, q, seen)
    running = len(edits)
    places = {s: backbone.device_of(s) for s in settings.sites}
    deltas = ValueOptimizer(
        {s: torch.zeros(len(edits), backbone.width, device=p) for s, p in places.items()}
    )
    loss = ValueLoss(q, settings, len(edits))
    with torch.enable_grad():
        for step in range(settings.steps):
            shift.delta = deltas.leaves()
            with backbone.applied(shift):
                logits = backbone.logits(state, rows=q.rows_B)
            if not step:
                bare = {s: y[q.bare_E.to(y.device)] for s, y in shift.y.items()}
                start = {s: bare[s] for s in settings.sites}
                deltas.begin(start, settings, {s: bare[streams[s]] for s in settings.sites})
                before = {s: bare[s] for s in seen if s not in start}
                now = {s: h.clone() for s, h in before.items()}
            for s, h in now.items():  # of an edit that has ended they stay as they were
                rows = q.bare_E.to(h.device)
                h[q.owner_B.to(h.device)[rows]] = shift.y[s].to(h.device)[rows]
            loss_E = loss.loss(logits, shift.delta, deltas.start)
            check_finite(loss_E, [e for _, e in edits])
            loss.stop(loss_E)
            if step == settings.steps - 1 or not bool(loss.active_E.any()):
                break
            total = loss_E[loss.active_E].sum()
            grads = torch.autograd.grad(total, list(shift.delta.values()))
            deltas.step(dict(zip(shift.delta, grads, strict=True)), loss.active_E, step)
            active = loss.active_E.nonzero()[:, 0]
            if 2 * len(active) <= running:
                running = len(active)
                q = _of_edits(backbone, edits, active, templates, settings)
                state, shift = _entered(backbone, q, seen)
                loss.narrow(q)
    value = {s: deltas.start[s] + deltas.shift(s) for s in settings.sites}
    logs = tuple(loss.log(e, deltas) for e in range(len(edits)))
    return ValueResult({**deltas.start, **before}, {**value, **now}, logs)


def _entered(
    backbone: Backbone, q: ValueBatch, sites: Sequence[str]
) -> tuple[Batch | PrefixState | SuffixState, ColumnShift]:
    """Where a step starts, and the hook that adds delta there and reads these sites."""
    shift = ColumnShift(sites, q.columns_B, q.owner_B)
    entry = backbone.entry(shift)
    if entry is None:
        return q.batch, shift
    with torch.no_grad():
        entered = backbone.enter(q.batch, entry, rows=q.rows_B)
        later = backbone.suffix(entered, q.columns_B)
    if later is None:
        return entered, shift
    shift.columns_B = torch.zeros_like(q.columns_B)
    return later, shift


def _of_edits(
    backbone: Backbone,
    edits: Sequence[tuple[int, Edit]],
    chosen: Tensor,
    templates: Sequence[str],
    settings: ValueSettings,
) -> ValueBatch:
    """The rows of the chosen edits alone; `owner_B` counts all edits."""
    q = value_batch(backbone, [edits[e] for e in chosen.tolist()], templates, settings)
    return replace(q, owner_B=chosen.to(q.owner_B.device)[q.owner_B])


class ValueOptimizer:
    """Adam (Kingma and Ba 2015) on one free vector per edit and site; edits are independent.

    With `lr=auto`, a step is about |h| * REACH / steps long, where h is the hidden state that the
    site's output is added to: Adam changes each of d features by the step size, a vector by sqrt(d)
    times that. Published step sizes are numbers that fit one model each, 0.1 to 0.5.

    With `scaled`, scale * vector is added, with scale = |h0| / 100 within [1, 5]; where that
    exceeds 1 the step starts at lr * scale^0.35 (of the largest scale) and falls along a cosine.
    """

    def __init__(self, zero: Mapping[str, Tensor]) -> None:
        self.free = dict(zero)
        self.m = {s: torch.zeros_like(z) for s, z in zero.items()}
        self.v = {s: torch.zeros_like(z) for s, z in zero.items()}
        self.scale = {s: torch.ones(len(z), 1, device=z.device) for s, z in zero.items()}
        self.start: dict[str, Tensor] = {}
        self.stream: dict[str, Tensor] = {}
        self.steps_E = torch.zeros(len(next(iter(zero.values()))), dtype=torch.long)
        self.clamped_E = torch.zeros_like(self.steps_E)

    def begin(
        self,
        start: Mapping[str, Tensor],
        settings: ValueSettings,
        stream: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Called once h0 is known, whose norm sets scale and clamp.

        stream: per site [E, d] the hidden state that its output is added to; by default h0.
        """
        self.settings, self.start = settings, dict(start)
        self.stream = {s: h.norm(dim=1, keepdim=True) for s, h in (stream or start).items()}
        if settings.scaled:
            self.scale = {
                s: (h.norm(dim=1, keepdim=True) / 100.0).clamp(1.0, 5.0) for s, h in start.items()
            }

    def shift(self, site: str) -> Tensor:
        """[E, d] the delta that is added."""
        return self.scale[site] * self.free[site]

    def leaves(self) -> dict[str, Tensor]:
        return {s: self.shift(s).detach().requires_grad_(True) for s in self.free}

    def rate(self, site: str, step: int) -> Tensor:
        """[E, 1] the step size of each edit at a site."""
        s, start = self.settings, self.start[site]
        widest = torch.stack([k.cpu() for k in self.scale.values()]).amax(0).to(start.device)
        if s.lr == "auto":
            reach = REACH / max(1, s.steps - 1) / start.shape[1] ** 0.5
            base = reach * self.stream[site].to(start.device)
        else:
            base = torch.full_like(widest, s.lr)
        fall = 0.45 * (1 + math.cos(math.pi * step / s.steps)) + 0.1 if step else 1.0
        return torch.where(widest > 1, base * widest**0.35 * fall, base)

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], active_E: Tensor, step: int) -> None:
        """One update of the active edits, then their clamp."""
        t = step + 1
        for site, grad in grads.items():
            g = self.scale[site] * grad.float()
            m, v = self.m[site], self.v[site]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            size = (v / (1 - 0.999**t)).sqrt() + 1e-8
            moved = self.free[site] - self.rate(site, step) * (m / (1 - 0.9**t)) / size
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


class ValueLoss:
    """The loss of every edit, and which edits are still searched (active_E)."""

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
        """[E] the loss; its terms are kept for the log, of finished edits as they were."""
        q, s = self.q, self.settings
        place = logits_BMV.device
        is_nll = ~q.is_kl_B
        owner = q.owner_B[is_nll].to(place)
        ids, real = q.ids_BM[is_nll].to(place), q.real_BM[is_nll].to(place)
        logp = logits_BMV[is_nll.to(place)].log_softmax(-1)
        nll_B = -(logp.gather(-1, ids[..., None])[..., 0] * real).sum(1) / real.sum(1)
        right_B = ((logp.argmax(-1) == ids) | (real == 0)).all(1)
        count = torch.bincount(owner, minlength=len(self.active_E)).clamp(min=1)
        nll = torch.zeros(len(count), device=place).index_add(0, owner, nll_B) / count
        wrong = torch.zeros(len(count), device=place).index_add(0, owner, (~right_B).float())
        kl = self._kl(logits_BMV)
        decay = torch.zeros_like(nll)
        for site, vector in shift.items():
            norm, base = vector.norm(dim=1), start[site].norm(dim=1).clamp(min=1e-12)
            power = (norm / base).square() if s.decay == "squared" else norm / base.square()
            decay = decay + s.weight_decay * power.to(place)
        parts = {"nll": nll, "kl": kl, "decay": decay, "right": (wrong == 0).float()}
        on = self.active_E.to(place)
        self.parts = {
            k: torch.where(on, v.detach(), self.parts.get(k, v.detach())) for k, v in parts.items()
        }
        return self.weight_E.to(place) * nll + s.kl_factor * kl + decay

    def narrow(self, q: ValueBatch) -> None:
        """Only the rows in q, whole edits, run from now on."""
        if self.before is not None:
            runs = torch.isin(self.q.owner_B[self.q.is_kl_B], q.owner_B)
            self.before = self.before[runs.to(self.before.device)]
        self.q = q

    def _kl(self, logits_BMV: Tensor) -> Tensor:
        """[E] KL(now || before) behind the KL prompt; 0 for edits without a subject."""
        place = logits_BMV.device
        total = torch.zeros(len(self.active_E), device=place)
        is_kl = self.q.is_kl_B.to(place)
        if not bool(is_kl.any()):
            return total
        now = logits_BMV[is_kl, 0].log_softmax(-1)
        if self.before is None:
            self.before = now.detach()
        each = (now.exp() * (now - self.before)).sum(-1)
        return total.index_add(0, self.q.owner_B.to(place)[is_kl], each)

    def stop(self, loss_E: Tensor) -> None:
        """Ends the search of edits that have reached the goal; see `downweight_when_right`."""
        s = self.settings
        done = loss_E.detach() < s.stop_loss
        if s.downweight_when_right:
            right = self.parts["right"].bool()
            done = done | (right & (s.kl_factor * self.parts["kl"] <= 0.01))
            self.weight_E = torch.where(right, 0.1, 1.0).to(self.weight_E)
        self.active_E = self.active_E & ~done.to(self.active_E.device)

    def log(self, edit: int, deltas: ValueOptimizer) -> dict[str, Any]:
        """JSON-ready numbers of one edit's search; `nll` and `kl` are of its last step."""
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
