"""The value search of `bridge`: a loss on what the image generator is given.

A vector delta is added at the last token of the subject, in image prompts that do not state the
fact. The goal is that their conditioning becomes that of image prompts that state it. Per edit the
loss is

    mean over prompts of |C(prompt; delta) - C(with fact)|^2 / |C(prompt) - C(with fact)|^2
    + text_weight * the loss of `value_search` on the target's tokens

where C (`match`) is `Backbone.conditioning` in the columns that both prompts share, from the
subject to their end (`tokens`); its mean over all columns (`mean`); or the picture that the
generator predicts from it (`picture`), from noise on which the prompt with the fact has begun to
draw, new in each step. The first term is 1 at the start and 0 at the goal. A model that draws by a
call of its own has its own loss in place of the last (`drawn`).

Shapes: E edits, B rows (image prompts of all edits), T columns, c width of the conditioning, d, N
image tokens, P values of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import value_search
from errata.algorithms.locate_then_edit.context_templates import lookup_columns
from errata.algorithms.locate_then_edit.value_search import (
    ColumnShift,
    ValueLoss,
    ValueOptimizer,
    ValueResult,
)
from errata.core.errors import BadEdit, BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.model.generation import ImageGenerator
from errata.core.types import Edit, Prompt
from errata.editors.bridge.drawn import DrawnPrompts
from errata.training.optimise import check_finite

ROWS = 256  # image prompts of one batch
DRAWS = 2  # noises per prompt and step
LATEST = 0.6  # latest time that is drawn: the picture is nearly decided after it
FIELDS = ("subject", "target", "statement", "prompt")


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """prompts, oracles: templates of image prompts without the fact, and with it; see FIELDS.

    `{statement}` is the edit's prompt with its target, `{prompt}` the image prompt without the
    fact. An oracle without `{prompt}` replaces the subject. match, text_weight: see the head of
    this file. random: control; delta is replaced by a random direction of the same length.
    """

    prompts: tuple[str, ...]
    oracles: tuple[str, ...]
    match: Literal["tokens", "mean", "picture"] = "picture"
    text_weight: float = 1.0
    random: bool = False


def check_templates(editor: str, settings: BridgeSettings) -> None:
    """Raises BadSpec for templates that cannot work."""
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


def with_fact(oracle: str, template: str, edit: Edit) -> str:
    """The image prompt of `template` with the fact in the words of `oracle`."""
    if "{prompt}" in oracle:
        return fill(oracle, edit, fill(template, edit))
    return fill(template.replace("{subject}", fill(oracle, edit)), edit)


def fill(template: str, edit: Edit, prompt: str = "") -> str:
    """The template with its fields filled in for an edit."""
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
    """The image prompts of all edits, and their goal.

    with_fact [B, T', c]: conditioning of the prompts with the fact, valid in `with_fact_mask`.
    goal: for `tokens` [B, T, c], valid in the columns `shared` [B, T]; for `mean` [B, c].
    start_B: the distance before the search.
    """

    backbone: ImageGenerator
    prompts: Batch
    rows_B: Tensor
    owner_B: Tensor
    columns_B: Tensor
    with_fact: Tensor
    with_fact_mask: Tensor
    goal: Tensor
    shared: Tensor
    start_B: Tensor
    match: str

    def searched(self, site: str) -> ConditionedSearch:
        """These prompts, with a vector to be added at a site."""
        shift = ColumnShift((site,), self.columns_B, self.owner_B)
        state = _entered(self.backbone, self.prompts, self.rows_B, shift)
        return ConditionedSearch(self, shift, state)

    def loss(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[E] remaining distance (1 at the start), mean over the prompts of an edit."""
        left_B = self.distance(cond_BTc, rngs) / self.start_B.to(cond_BTc.device)
        owner = self.owner_B.to(left_B.device)
        total = torch.zeros(len(rngs), device=left_B.device).index_add(0, owner, left_B)
        return total / torch.bincount(owner, minlength=len(rngs))

    def distance(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[B] squared distance to the goal; `rngs`, one per edit, draw the noise of `picture`."""
        cond = cond_BTc.float()
        if self.match == "mean":
            return (mean_of(cond, self.prompts.mask) - self.goal).square().sum(-1)
        if self.match == "picture":
            draws = [self._picture_distance(cond_BTc, rngs) for _ in range(DRAWS)]
            return torch.stack(draws).mean(0)
        off = torch.where(self.shared[..., None], cond - self.goal, 0.0)
        return off.square().sum((1, 2))

    def _picture_distance(self, cond_BTc: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """[B] mean squared difference of the two predicted pictures at a random time."""
        count = torch.bincount(self.owner_B, minlength=len(rngs)).tolist()
        canvas, denoise = self.backbone.canvas, self.backbone.denoise
        fact, fact_mask = self.with_fact, self.with_fact_mask
        noise = torch.cat(
            [torch.randn(n, *canvas, generator=g) for n, g in zip(count, rngs, strict=True)]
        )
        times = torch.cat([torch.rand(n, generator=g) for n, g in zip(count, rngs, strict=True)])
        x, t = noise.to(cond_BTc), (times * LATEST).to(cond_BTc)
        with torch.no_grad():
            begun = denoise(x, torch.zeros_like(t), fact, fact_mask)
            x = t[:, None, None] * begun + (1 - t)[:, None, None] * x
            goal = denoise(x, t, fact, fact_mask)
        return (denoise(x, t, cond_BTc, self.prompts.mask) - goal).float().square().mean((1, 2))


@dataclass(frozen=True, eq=False)
class ConditionedSearch:
    """shift: adds the vector. state: the prompts, begun below its block."""

    prompts: ImagePrompts
    shift: ColumnShift
    state: Batch | PrefixState

    def left(self, delta: Mapping[str, Tensor], rngs: Sequence[torch.Generator]) -> Tensor:
        """[E] remaining distance with delta [E, d] added, as `ImagePrompts.loss`."""
        self.shift.delta = dict(delta)
        backbone = self.prompts.backbone
        with backbone.applied(self.shift):
            cond = backbone.conditioning(self.state, rows=self.prompts.rows_B)
            return self.prompts.loss(cond, rngs)


def mean_of(cond_BTc: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, c] over real columns."""
    real = mask_BT.bool()[..., None]
    return torch.where(real, cond_BTc, 0.0).sum(1) / real.sum(1)


def prompt_pairs(
    edits: Sequence[tuple[int, Edit]], settings: BridgeSettings
) -> list[tuple[int, str, str]]:
    """(edit, image prompt, the same with the fact). Raises BadEdit."""
    pairs: list[tuple[int, str, str]] = []
    for e, (_, edit) in enumerate(edits):
        if not edit.subject:
            raise BadEdit(
                f"edit '{edit.id or edit.prompt.text[:60]}' names no subject, which image prompts "
                "are made of. Give it one."
            )
        for template in settings.prompts:
            prompt = fill(template, edit)
            pairs += [(e, prompt, with_fact(o, template, edit)) for o in settings.oracles]
    return pairs


def searched_prompts(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
    site: str,
) -> ConditionedSearch | DrawnPrompts:
    """The image prompts of these edits on this model, with a vector to be added at a site.

    Raises BadEdit, BadSpec, BadBackbone.
    """
    if not backbone.has_own_loss:
        return image_prompts(backbone, edits, settings, rngs).searched(site)
    if settings.match != "picture":
        raise BadSpec(
            f"{backbone.name} gives its image generator more than the states of tokens, so only "
            "the predicted pictures can be compared. Leave out --set match=, or set it to picture."
        )
    return DrawnPrompts.of(backbone, edits, prompt_pairs(edits, settings), site)


@torch.no_grad()
def image_prompts(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> ImagePrompts:
    """The image prompts of these edits, each given as (patch row, edit).

    Raises BadEdit for an edit without a subject, BadSpec for prompts whose distance is 0.
    """
    pairs = prompt_pairs(edits, settings)
    rows = [edits[e][0] for e, _, _ in pairs]
    plain = backbone.encode([Prompt.of(p) for _, p, _ in pairs], rows=rows)
    fact = backbone.encode([Prompt.of(o) for _, _, o in pairs], rows=rows)
    device = plain.ids.device
    rows_B = torch.tensor(rows, device=device)
    columns = lookup_columns(backbone, plain, [edits[e][1].subject for e, _, _ in pairs])
    start, with_fact_cond = (backbone.conditioning(b, rows=rows_B) for b in (plain, fact))
    goal, shared = mean_of(with_fact_cond.float(), fact.mask), plain.mask.bool()
    if settings.match == "tokens":
        goal, shared = _shared(plain, fact, with_fact_cond.float(), columns)
    owner_B = torch.tensor([e for e, _, _ in pairs], device=device)
    prompts = ImagePrompts(
        backbone, plain, rows_B, owner_B, columns, with_fact_cond, fact.mask, goal, shared,
        torch.ones(len(pairs)), settings.match,
    )  # fmt: skip
    start_B = prompts.distance(start, rngs)
    if bool((start_B <= 0).any()):
        b = int((start_B <= 0).nonzero()[0])
        raise BadSpec(
            f"the model takes '{pairs[b][2]}' for '{pairs[b][1]}': the fact makes no "
            "difference. Set other oracles."
        )
    return replace(prompts, start_B=start_B)


def _shared(
    plain: Batch, fact: Batch, cond_BTc: Tensor, subject_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Goal and columns of `tokens`: from the subject's last token to the end, which both share.

    subject_B: the column of that token. Raises BadSpec for prompts that differ behind the subject.
    """
    goal = cond_BTc.new_zeros(*plain.ids.shape, cond_BTc.shape[-1])
    shared = torch.zeros_like(plain.mask, dtype=torch.bool)
    for b in range(plain.size):
        n, m, first = int(plain.lengths[b]), int(fact.lengths[b]), int(subject_B[b])
        width = n - first
        if m < width or not plain.ids[b, first:n].equal(fact.ids[b, m - width : m]):
            raise BadSpec(
                f"'{fact.prompts[b].text}' does not end as '{plain.prompts[b].text}' does from "
                "the subject on, so their tokens cannot be compared. Set oracles that state the "
                "fact before the subject, or another --set match=."
            )
        goal[b, first:n], shared[b, first:n] = cond_BTc[b, m - width : m], True
    return goal, shared


def search(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    text: value_search.ValueSettings,
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> ValueResult:
    """The values of all edits, on top of what is applied.

    rngs, one per edit: for the noise of `picture` and the direction of `random`. Raises BadEdit,
    BadSpec, NotFinite.
    """
    size = max(1, ROWS // (len(settings.prompts) * len(settings.oracles)))
    parts = [
        _search(backbone, edits[i : i + size], templates, text, settings, rngs[i : i + size])
        for i in range(0, len(edits), size)
    ]
    (site,) = text.sites
    start = torch.cat([p.start[site] for p in parts])
    value = torch.cat([p.value[site] for p in parts])
    if settings.random:
        length = (value - start).norm(dim=1, keepdim=True)
        random = torch.stack([torch.randn(start.shape[1], generator=rng) for rng in rngs])
        value = start + (random / random.norm(dim=1, keepdim=True)).to(start) * length
    return ValueResult({site: start}, {site: value}, tuple(line for p in parts for line in p.log))


def _search(
    backbone: ImageGenerator,
    edits: Sequence[tuple[int, Edit]],
    templates: Sequence[str],
    text: value_search.ValueSettings,
    settings: BridgeSettings,
    rngs: Sequence[torch.Generator],
) -> ValueResult:
    q = value_search.value_batch(backbone, edits, templates, text)
    (site,) = text.sites
    bridge = searched_prompts(backbone, edits, settings, rngs, site)
    text_shift = ColumnShift(text.sites, q.columns_B, q.owner_B)
    text_state = _entered(backbone, q.batch, q.rows_B, text_shift)
    deltas = ValueOptimizer(
        {site: torch.zeros(len(edits), backbone.width, device=q.batch.ids.device)}
    )
    text_loss = ValueLoss(q, text, len(edits))
    left_E = torch.ones(len(edits), device=q.batch.ids.device)
    with torch.enable_grad():
        for step in range(text.steps):
            text_shift.delta = deltas.leaves()
            image_E = bridge.left(text_shift.delta, rngs)
            left_E = torch.where(text_loss.active_E, image_E.detach().to(left_E), left_E)
            loss_E = image_E
            if settings.text_weight or not step:  # step 0 reads h0
                with backbone.applied(text_shift):
                    logits = backbone.logits(text_state, rows=q.rows_B)
                if not step:
                    deltas.begin({site: text_shift.y[site][q.bare_E]}, text)
                text_E = text_loss.loss(logits, text_shift.delta, deltas.start)
                loss_E = loss_E + settings.text_weight * text_E.to(loss_E.device)
            check_finite(loss_E, [e for _, e in edits])
            text_loss.stop(loss_E)
            if step == text.steps - 1 or not bool(text_loss.active_E.any()):
                break
            grads = torch.autograd.grad(
                loss_E[text_loss.active_E].sum(), list(text_shift.delta.values())
            )
            deltas.step(dict(zip(text_shift.delta, grads, strict=True)), text_loss.active_E, step)
    if not settings.text_weight:  # for the log: the text loss was not searched
        active, text_loss.active_E = text_loss.active_E, torch.ones_like(text_loss.active_E)
        with torch.no_grad(), backbone.applied(text_shift):
            text_loss.loss(
                backbone.logits(text_state, rows=q.rows_B), text_shift.delta, deltas.start
            )
        text_loss.active_E = active
    log = tuple(
        {**text_loss.log(e, deltas), "way_left": round(float(left_E[e]), 4)}
        for e in range(len(edits))
    )
    return ValueResult(deltas.start, {site: deltas.start[site] + deltas.shift(site)}, log)


def _entered(
    backbone: Backbone, batch: Batch, rows_B: Tensor, shift: ColumnShift
) -> Batch | PrefixState:
    entry = backbone.entry(shift)
    return batch if entry is None else backbone.enter(batch, entry, rows=rows_B)
