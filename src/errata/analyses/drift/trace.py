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

    A step's rows are [prompt, seed], followed by those of the empty condition; only the first
    `rows` are recorded. times: of every step, per site. Raises NotFinite at the first stage that is
    not finite.
    """

    def __init__(self, stages: Sequence[Stage], rows: int, keep: Sequence[int]) -> None:
        super().__init__(tuple(s.site for s in stages))
        self.rows, self.keep = rows, frozenset(keep)
        self.names = {s.site: s.name for s in stages}
        self.text: dict[str, list[Tensor]] = {}
        self.steps: dict[str, list[Tensor]] = {}
        self.times: dict[str, list[float]] = {}

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if not bool(y.isfinite().all()):
            raise NotFinite(
                f"stage '{self.names[site]}' became infinite or not a number while drawing. Load "
                "with --dtype float32, or try the edit alone."
            )
        if ctx.moment is None:
            self.text.setdefault(site, []).append(y.detach().float().cpu())
            return y
        times = self.times.setdefault(site, [])
        if len(times) in self.keep:
            self.steps.setdefault(site, []).append(y.detach()[: self.rows].float().cpu())
        times.append(float(ctx.moment))
        return y


class StateSwap(Hook):
    """Replaces the columns `where` [B, T] by the text states [B, T, d] of another forward."""

    def __init__(self, site: str, states: Tensor, where: Tensor) -> None:
        super().__init__((site,))
        self.states, self.where = states, where

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        assert y.shape == self.states.shape, (y.shape, self.states.shape)
        where, states = self.where.to(y.device), self.states.to(y)
        return torch.where(where[..., None], states, y)


def drawing_steps(backbone: ImageGenerator, prompt: Prompt, count: int) -> tuple[int, ...]:
    """`count` evenly spaced steps of a drawing, first and last included."""
    stages = backbone.path()
    recorder = StageRecorder(stages, 1, ())
    with torch.no_grad(), backbone.applied(recorder):
        backbone.draw([prompt], [0])
    total = len(recorder.times.get(stages[-1].site, ()))
    if not total:
        raise _not_reached(backbone, stages[-1])
    count = min(count, total)
    return tuple(sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)}))


@torch.no_grad()
def trace_drawing(
    backbone: ImageGenerator,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    keep: Sequence[int],
    *hooks: Hook | None,
) -> DrawingTrace:
    """Draws with `hooks` applied and records what leaves them.

    Raises BadBackbone for a stage that the drawing does not reach, NotFinite for one that is not
    finite, and whatever a block itself raises.
    """
    stages = backbone.path()
    recorder = StageRecorder(stages, len(prompts) * len(seeds), keep)
    with backbone.applied(*hooks, recorder):
        mask = backbone.encode(prompts).mask.bool().cpu()
        pictures = backbone.draw(prompts, seeds)
    text: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    moments: tuple[float, ...] = ()
    for stage in stages:
        if states := recorder.text.get(stage.site):
            assert len(states) == 1, f"{backbone.name} drew {len(prompts)} prompts in several parts"
            text[stage.name] = states[0][: len(prompts)]
            assert text[stage.name].shape[:2] == mask.shape, (stage, text[stage.name].shape)
        elif parts := recorder.steps.get(stage.site):
            kept = torch.stack(parts)
            steps[stage.name] = kept.reshape(len(kept), len(prompts), len(seeds), *kept.shape[2:])
            times = recorder.times[stage.site]
            moments = tuple(times[i] for i in sorted(recorder.keep))
        else:
            raise _not_reached(backbone, stage)
    pixels = torch.from_numpy(
        np.stack([np.stack([np.asarray(p) for p in row]) for row in pictures])
    )
    return DrawingTrace(text, mask, steps, moments, pixels.float() / 255, pictures)


def _not_reached(backbone: ImageGenerator, stage: Stage) -> BadBackbone:
    return BadBackbone(
        f"{backbone.name}: stage '{stage.name}' ({stage.site}) was not reached while drawing. Its "
        "path() names a site that draw does not run; `errata doctor` shows the sites."
    )
