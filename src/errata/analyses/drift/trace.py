"""The hidden states on the way from a prompt to an image, recorded while the model draws.

Nothing is computed a second time: a hook at the sites of `ImageGenerator.path()` records the real
call of `draw`. A stage that is not reached, or is not finite, is an error.

Shapes: B prompts, T text columns, S seeds, M recorded steps, P image tokens, d and w widths, H and
W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errata.core.errors import BadBackbone, NotFinite
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.generation import ImageGenerator, Stage
from errata.core.types import Prompt

PICTURE = "picture"


@dataclass(frozen=True, eq=False)
class DrawingTrace:
    """One drawing, stage by stage.

    text: stage -> [B, T, d], valid in the columns of `mask` [B, T]. steps: stage ->
    [M, B, S, P, w] at the times `moments`. pixels: [B, S, H, W, 3] from 0 to 1; `pictures` are the
    same as PIL images.
    """

    text: Mapping[str, Tensor]
    mask: Tensor
    steps: Mapping[str, Tensor]
    moments: tuple[float, ...]
    pixels: Tensor
    pictures: Sequence[Sequence[Any]]


class StageRecorder(Hook):
    """Records every text stage, and the image stages at the steps of `keep`.

    A step's rows are [prompt, seed], followed by those of the empty condition, and only the first
    `rows` are recorded; a model that draws prompts one by one says which rows have the prompt, and
    may draw seeds one by one too. times: of every step, per site and prompt. Raises NotFinite at
    the first stage that is not finite.
    """

    def __init__(self, stages: Sequence[Stage], rows: int, keep: Sequence[int]) -> None:
        super().__init__(tuple(s.site for s in stages))
        self.rows, self.keep = rows, frozenset(keep)
        self.names = {s.site: s.name for s in stages}
        self.in_text = {s.site for s in stages if s.in_text}
        #: site -> prompt (-1: all together) -> [T, d] or [B, T, d]
        self.text: dict[str, dict[int, list[Tensor]]] = {}
        #: the same -> per drawing -> [M] times [S, P, w]
        self.steps: dict[str, dict[int, list[list[Tensor]]]] = {}
        self.times: dict[str, dict[int, list[list[float]]]] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if ctx.prompt_rows is None:
            self._keep(site, -1, y, ctx)
            return y
        own, of_row = ctx.prompt_rows.to(y.device), ctx.rows_of(site, y)
        for prompt in torch.unique(of_row[own]).tolist():
            self._keep(site, prompt, y[own & (of_row == prompt)], ctx)
        return y

    def _keep(self, site: str, prompt: int, states: Tensor, ctx: HookContext) -> None:
        """states: the rows of a prompt, or of all prompts (-1)."""
        if not bool(states.isfinite().all()):
            raise NotFinite(
                f"stage '{self.names[site]}' became infinite or not a number while drawing. Load "
                "with --dtype float32, or try the edit alone."
            )
        if site in self.in_text:
            parts = self.text.setdefault(site, {}).setdefault(prompt, [])
            if prompt < 0 or not parts:  # the same in all steps, for all seeds
                parts.append((states if prompt < 0 else states[0]).detach().float().cpu())
            return
        drawings = self.times.setdefault(site, {}).setdefault(prompt, [])
        kept = self.steps.setdefault(site, {}).setdefault(prompt, [])
        moment = float(ctx.moment or 0.0)
        if not drawings or moment < drawings[-1][-1]:  # the next seed
            drawings.append([])
            kept.append([])
        if len(drawings[-1]) in self.keep:
            own = states if prompt >= 0 else states[: self.rows]
            kept[-1].append(own.detach().float().cpu())
        drawings[-1].append(moment)

    def text_of(self, stage: Stage, prompts: int) -> Tensor | None:
        """[B, T, d] the states of a text stage, padded; None if it was not reached."""
        parts = self.text.get(stage.site)
        if not parts:
            return None
        if -1 in parts:
            (states,) = parts[-1]
            return states[:prompts]
        each = [parts[b][0] for b in range(prompts)]
        return torch.nn.utils.rnn.pad_sequence(each, batch_first=True)

    def steps_of(self, stage: Stage, prompts: int, seeds: int) -> Tensor | None:
        """[M, B, S, P, w] of an image stage; None if it was not reached."""
        parts = self.steps.get(stage.site)
        if not parts or not any(map(any, parts.values())):
            return None
        if -1 in parts:
            (drawing,) = parts[-1]
            kept = torch.stack(drawing)
            return kept.reshape(len(kept), prompts, seeds, *kept.shape[2:])
        each = [torch.cat([torch.stack(d) for d in parts[b]], dim=1) for b in range(prompts)]
        return torch.stack(each, dim=1)


class StateSwap(Hook):
    """Replaces the columns `where` [B, T] by the text states [B, T, d] of another forward."""

    def __init__(self, site: str, states: Tensor, where: Tensor) -> None:
        super().__init__((site,))
        self.states, self.where = states, where

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        where, states = self.where.to(y.device), self.states.to(y)
        if ctx.prompt_rows is not None:
            own, of_row = ctx.prompt_rows.to(y.device)[:, None], ctx.rows_of(site, y)
            where = where[of_row, : y.shape[1]] & own
            states = states[of_row, : y.shape[1]]
        assert y.shape == states.shape, (y.shape, states.shape)
        return torch.where(where[..., None], states, y)


def drawing_steps(backbone: ImageGenerator, prompt: Prompt, count: int) -> tuple[int, ...]:
    """`count` evenly spaced steps of a drawing, first and last included."""
    stages = backbone.path()
    recorder = StageRecorder(stages, 1, ())
    with torch.no_grad(), backbone.applied(recorder):
        backbone.draw([prompt], [0])
    drawings = recorder.times.get(stages[-1].site, {}).values()
    total = max((len(t) for drawing in drawings for t in drawing), default=0)
    if not total:
        raise _not_reached(backbone, stages[-1])
    count = min(count, total)
    return tuple(sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)}))


@torch.no_grad()
def trace_drawing(
    backbone: ImageGenerator,
    prompts: Sequence[Prompt],
    subjects: Sequence[str],
    seeds: Sequence[int],
    keep: Sequence[int],
    *hooks: Hook | None,
) -> tuple[DrawingTrace, Tensor]:
    """Draws with `hooks` applied and records what leaves them; also the columns of the subjects.

    Raises BadBackbone for a stage that the drawing does not reach, NotFinite for one that is not
    finite, BadEdit for a subject that is not in its prompt, and whatever a block itself raises.
    """
    stages = backbone.path()
    recorder = StageRecorder(stages, len(prompts) * len(seeds), keep)
    with backbone.applied(*hooks):
        mask, subject = backbone.conditioning_columns(prompts, subjects)
        with backbone.applied(recorder):
            pictures = backbone.draw(prompts, seeds)
    text: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    moments: tuple[float, ...] = ()
    for stage in stages:
        states = recorder.text_of(stage, len(prompts))
        kept = recorder.steps_of(stage, len(prompts), len(seeds))
        if states is not None:
            text[stage.name] = states
            assert states.shape[:2] == mask.shape, (stage, states.shape, mask.shape)
        elif kept is not None:
            steps[stage.name] = kept
            times = next(iter(recorder.times[stage.site].values()))[0]
            moments = tuple(times[i] for i in sorted(recorder.keep))
        else:
            raise _not_reached(backbone, stage)
    pixels = torch.from_numpy(
        np.stack([np.stack([np.asarray(p) for p in row]) for row in pictures])
    )
    return DrawingTrace(text, mask, steps, moments, pixels.float() / 255, pictures), subject


def _not_reached(backbone: ImageGenerator, stage: Stage) -> BadBackbone:
    return BadBackbone(
        f"{backbone.name}: stage '{stage.name}' ({stage.site}) was not reached while drawing. Its "
        "path() names a site that draw does not run; `errata doctor` shows the sites."
    )
