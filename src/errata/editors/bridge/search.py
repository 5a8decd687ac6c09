"""Searching values by what the picture's generator is given, not by what the model says.

A vector delta is added where the subject ends, in image prompts that do not state the fact; what is
wanted is that their projected states become those of prompts that do. Per edit the loss is

    mean over prompts of |C(prompt; delta) - C(stated)|^2 / |C(prompt) - C(stated)|^2
    + text_weight * the loss of the target's words, as in `finding.values`

where C is `ImageGenerator.conditioning` in the columns that both prompts share from the subject to
their end (`tokens`), its mean over all columns (`mean`), or the picture that the generator predicts
when it is given them (`picture`): from noise on which the stated prompt has begun to draw, new in
each step. 1 is where the search begins, 0 the goal.

Shapes: E edits, B rows (image prompts of all edits), T columns, c width of the conditioning, d, N
image tokens, P values of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import value_search
from errata.algorithms.locate_then_edit.context_templates import columns
from errata.algorithms.locate_then_edit.value_search import (
    ColumnShift,
    FoundValues,
    ValueOptimizer,
    ValueTarget,
)
from errata.core.errors import BadEdit, BadSpec, NotFinite
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.generation import ImageGenerator
from errata.core.types import Edit, Prompt

ROWS = 256  # image prompts that are searched together
DRAWS = 2  # noises per prompt and step
LATEST = 0.6  # time up to which the stated prompt has drawn: later, little is left to decide
FIELDS = ("subject", "target", "statement", "prompt")


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """prompts, oracles: templates of FIELDS, of image prompts without the fact and with it.

    `{statement}` is the edit's own prompt with its target, `{prompt}` the one without the fact. An
    oracle without `{prompt}` is what stands in place of the subject. match, text_weight: see the
    head of this file. random: the vector that was found is replaced by one of its length in a
    random direction, which shows what the direction is worth.
    """

    prompts: tuple[str, ...]
    oracles: tuple[str, ...]
    match: Literal["tokens", "mean", "picture"] = "picture"
    text_weight: float = 1.0
    random: bool = False


def check_templates(editor: str, settings: BridgeSettings) -> None:
    """Raises BadSpec."""
    for name, templates, needed in (
        ("prompts", settings.prompts, ("{subject}",)),
        ("oracles", settings.oracles, ("{target}", "{statement}")),
    ):
        if not templates:
            raise BadSpec(f"editor '{editor}': {name} is empty. Give at least one template.")
        for template in templates:
            if not any(field in template for field in needed):
                raise BadSpec(
                    f"editor '{editor}': '{template}' in {name} has no {' or '.join(needed)}. "
                    f"Known fields: {', '.join(f'{{{f}}}' for f in FIELDS)}."
                )


def stated(oracle: str, template: str, edit: Edit) -> str:
    """The image prompt of `template` with the fact, as the template `oracle` states it."""
    if "{prompt}" in oracle:
        return filled(oracle, edit, filled(template, edit))
    return filled(template.replace("{subject}", filled(oracle, edit)), edit)


def filled(template: str, edit: Edit, prompt: str = "") -> str:
    """A template about one edit."""
    texts = {
        "subject": edit.subject or "",
        "target": edit.target.strip(),
        "statement": f"{edit.prompt.text.strip()} {edit.target.strip()}",
        "prompt": prompt,
    }
    for field, text in texts.items():
        template = template.replace(f"{{{field}}}", text)
    return template


@dataclass(frozen=True, eq=False)
class ImagePrompts:
    """The image prompts of all edits, and where they are to go.

    there [B, T', c] what the stated prompts give, real in `there_mask`. goal: of `tokens` [B, T, c]
    in the columns `where` [B, T], of `mean` [B, c]. start_B: the distance before the search.
    """

    backbone: ImageGenerator
    prompts: Batch
    rows_B: Tensor
    owner_B: Tensor
    columns_B: Tensor
    there: Tensor
    there_mask: Tensor
    goal: Tensor
    where: Tensor
    start_B: Tensor
    match: str

    def loss(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[E] the share of the way that is left, mean over an edit's prompts."""
        left_B = self.distance(cond_BTc, rngs) / self.start_B.to(cond_BTc.device)
        owner = self.owner_B.to(left_B.device)
        total = torch.zeros(len(rngs), device=left_B.device).index_add(0, owner, left_B)
        return total / torch.bincount(owner, minlength=len(rngs))

    def distance(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[B] squared; `rngs`, one per edit, draw the noise of `picture`."""
        cond = cond_BTc.float()
        if self.match == "mean":
            return (mean_of(cond, self.prompts.mask) - self.goal).square().sum(-1)
        if self.match == "picture":
            draws = [self._imagined(cond_BTc, rngs) for _ in range(DRAWS)]
            return torch.stack(draws).mean(0)
        off = torch.where(self.where[..., None], cond - self.goal, 0.0)
        return off.square().sum((1, 2))

    def _imagined(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[B] mean squared difference of what is expected of one picture in the making."""
        count = torch.bincount(self.owner_B, minlength=len(rngs)).tolist()
        canvas, there, seen = self.backbone.canvas, self.there, self.backbone.denoise
        noise = torch.cat(
            [torch.randn(n, *canvas, generator=g) for n, g in zip(count, rngs, strict=True)]
        )
        times = torch.cat([torch.rand(n, generator=g) for n, g in zip(count, rngs, strict=True)])
        x, t = noise.to(cond_BTc), (times * LATEST).to(cond_BTc)
        with torch.no_grad():
            begun = seen(x, torch.zeros_like(t), there, self.there_mask)
            x = t[:, None, None] * begun + (1 - t)[:, None, None] * x
            want = seen(x, t, there, self.there_mask)
        return (seen(x, t, cond_BTc, self.prompts.mask) - want).float().square().mean((1, 2))


def mean_of(cond_BTc: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, c] over real columns."""
    real = mask_BT.bool()[..., None]
    return torch.where(real, cond_BTc, 0.0).sum(1) / real.sum(1)


@torch.no_grad()
def crossing(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> ImagePrompts:
    """`edits`: (patch row, edit). Raises BadEdit without a subject, BadSpec for useless prompts."""
    asked: list[tuple[int, str, str]] = []
    for e, (_, edit) in enumerate(edits):
        if not edit.subject:
            raise BadEdit(
                f"edit '{edit.id or edit.prompt.text[:60]}' names no subject, which image prompts "
                "are made of. Give it one."
            )
        for template in settings.prompts:
            prompt = filled(template, edit)
            asked += [(e, prompt, stated(o, template, edit)) for o in settings.oracles]
    rows = [edits[e][0] for e, _, _ in asked]
    plain = backbone.encode([Prompt.of(p) for _, p, _ in asked], rows=rows)
    told = backbone.encode([Prompt.of(o) for _, _, o in asked], rows=rows)
    device = plain.ids.device
    rows_B = torch.tensor(rows, device=device)
    where = columns(backbone, plain, [edits[e][1].subject for e, _, _ in asked])
    start, there = (backbone.conditioning(b, rows=rows_B) for b in (plain, told))
    goal, shared = mean_of(there.float(), told.mask), plain.mask.bool()
    if settings.match == "tokens":
        goal, shared = _shared(plain, told, there.float(), where)
    owner_B = torch.tensor([e for e, _, _ in asked], device=device)
    found = ImagePrompts(
        backbone, plain, rows_B, owner_B, where, there, told.mask, goal, shared,
        torch.ones(len(asked)), settings.match,
    )  # fmt: skip
    start_B = found.distance(start, rngs)
    if bool((start_B <= 0).any()):
        b = int((start_B <= 0).nonzero()[0])
        raise BadSpec(
            f"the model takes '{asked[b][2]}' for '{asked[b][1]}': nothing tells that the fact is "
            "stated. Set other oracles."
        )
    return replace(found, start_B=start_B)


def _shared(plain: Batch, told: Batch, there_BTc: Tensor, where_B: Tensor) -> tuple[Tensor, Tensor]:
    """Goal and columns: the longest common end of both prompts, from the subject's last token on.

    Raises BadSpec where it does not reach the subject.
    """
    goal = there_BTc.new_zeros(*plain.ids.shape, there_BTc.shape[-1])
    shared = torch.zeros_like(plain.mask, dtype=torch.bool)
    for b in range(plain.size):
        n, m, first = int(plain.lengths[b]), int(told.lengths[b]), int(where_B[b])
        width = n - first
        if m < width or not plain.ids[b, first:n].equal(told.ids[b, m - width : m]):
            raise BadSpec(
                f"'{told.prompts[b].text}' does not end as '{plain.prompts[b].text}' does from "
                "the subject on, so their tokens cannot be compared. Set oracles that state the "
                "fact before the subject, or another --set match=."
            )
        goal[b, first:n], shared[b, first:n] = there_BTc[b, m - width : m], True
    return goal, shared


def search(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    beginnings: Sequence[str],
    text: value_search.ValueSettings,
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> FoundValues:
    """The values of all edits, on top of what is applied.

    `rngs`, one per edit, are for the noise of `picture` and the direction of `random`. Raises
    BadEdit, BadSpec, NotFinite.
    """
    size = max(1, ROWS // (len(settings.prompts) * len(settings.oracles)))
    parts = [
        _search(backbone, edits[i : i + size], beginnings, text, settings, rngs[i : i + size])
        for i in range(0, len(edits), size)
    ]
    (site,) = text.sites
    start = torch.cat([p.start[site] for p in parts])
    found = torch.cat([p.found[site] for p in parts])
    if settings.random:
        length = (found - start).norm(dim=1, keepdim=True)
        chance = torch.stack([torch.randn(start.shape[1], generator=rng) for rng in rngs])
        found = start + (chance / chance.norm(dim=1, keepdim=True)).to(start) * length
    return FoundValues({site: start}, {site: found}, tuple(line for p in parts for line in p.log))


def _search(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    beginnings: Sequence[str],
    text: value_search.ValueSettings,
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> FoundValues:
    q = value_search.question(backbone, edits, beginnings, text)
    bridge = crossing(backbone, edits, settings, rngs)
    (site,) = text.sites
    said = ColumnShift(text.sites, q.columns_B, q.owner_B)
    drawn = ColumnShift(text.sites, bridge.columns_B, bridge.owner_B)
    words = _entered(backbone, q.batch, q.rows_B, said)
    prompts = _entered(backbone, bridge.prompts, bridge.rows_B, drawn)
    deltas = ValueOptimizer(
        {site: torch.zeros(len(edits), backbone.width, device=q.batch.ids.device)}
    )
    goal = ValueTarget(q, text, len(edits))
    left_E = torch.ones(len(edits), device=q.batch.ids.device)
    with torch.enable_grad():
        for step in range(text.steps):
            said.delta = drawn.delta = deltas.leaves()
            with backbone.applied(drawn):
                way_E = bridge.loss(backbone.conditioning(prompts, rows=bridge.rows_B), rngs)
            left_E = torch.where(goal.active_E, way_E.detach().to(left_E), left_E)
            loss_E = way_E
            if settings.text_weight or not step:  # the first also says what deltas are added to
                with backbone.applied(said):
                    logits = backbone.logits(words, rows=q.rows_B)
                if not step:
                    deltas.begin({site: said.y[site][q.bare_E]}, text)
                told_E = goal.loss(logits, said.delta, deltas.start)
                loss_E = loss_E + settings.text_weight * told_E.to(loss_E.device)
            _check_finite(loss_E, edits)
            goal.stop(loss_E)
            if step == text.steps - 1 or not bool(goal.active_E.any()):
                break
            grads = torch.autograd.grad(loss_E[goal.active_E].sum(), list(said.delta.values()))
            deltas.step(dict(zip(said.delta, grads, strict=True)), goal.active_E, step)
    if not settings.text_weight:  # what became of the words, which nothing asked for
        active, goal.active_E = goal.active_E, torch.ones_like(goal.active_E)
        with torch.no_grad(), backbone.applied(said):
            goal.loss(backbone.logits(words, rows=q.rows_B), said.delta, deltas.start)
        goal.active_E = active
    log = tuple(
        {**goal.log(e, deltas), "way_left": round(float(left_E[e]), 4)} for e in range(len(edits))
    )
    return FoundValues(deltas.start, {site: deltas.start[site] + deltas.shift(site)}, log)


def _entered(
    backbone: Backbone, batch: Batch, rows_B: Tensor, shift: ColumnShift
) -> Batch | PrefixState:
    entry = backbone.entry(shift)
    return batch if entry is None else backbone.enter(batch, entry, rows=rows_B)


def _check_finite(loss_E: Tensor, edits: Sequence[tuple[int, Edit]]) -> None:
    bad = (~torch.isfinite(loss_E)).nonzero()
    if len(bad):
        edit = edits[int(bad[0])][1]
        raise NotFinite(
            f"the loss of edit '{edit.id or edit.prompt.text[:60]}' became "
            f"{loss_E[int(bad[0])].item()} during the search. Lower the step size (--set lr=...), "
            "or load the model with --dtype float32."
        )
