"""The image prompts of `bridge` on models that draw by a call of their own.

What the generator is given there has no common form, and a prompt is encoded as the call writes it.
So the goal is the model's own loss (`ImageGenerator.generator_loss`): the generator's prediction
for the prompt becomes that for the prompt with the fact, at points of the drawing with the fact.

Shapes: E edits, P image prompts of an edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.core.errors import BadSpec
from errata.core.hooks.context import HookContext
from errata.core.hooks.hook import Hook
from errata.core.model.generation import GeneratorLoss, ImageGenerator
from errata.core.types import Edit, Prompt

#: drawings with the fact, whose points are compared
SEEDS = (0, 1, 2, 3)
DRAWS = 2  # points per prompt and step


class PromptShift(Hook):
    """Adds delta [d] at one column of the rows that hold the prompt."""

    def __init__(self, site: str, column: int, delta: Tensor) -> None:
        super().__init__((site,))
        self.column, self.delta = column, delta

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if ctx.prompt_rows is None or not bool(ctx.prompt_rows.any()):
            return y
        here = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
        here[ctx.prompt_rows.to(y.device), self.column] = True
        return torch.where(here[..., None], y + self.delta.to(y.device, y.dtype), y)


@dataclass(frozen=True, eq=False)
class DrawnPrompt:
    """An image prompt of an edit. start: the mean distance of all points before the search."""

    loss: GeneratorLoss
    column: int
    start: float


class DrawnPrompts:
    """The image prompts of all edits, and how far their drawings are from those with the fact."""

    def __init__(self, site: str, of_edit: Sequence[Sequence[DrawnPrompt]]) -> None:
        self.site, self.of_edit = site, of_edit

    @classmethod
    def of(
        cls,
        backbone: ImageGenerator,
        edits: Sequence[tuple[int, Edit]],
        pairs: Sequence[tuple[int, str, str]],
        site: str,
    ) -> DrawnPrompts:
        """pairs: (edit, prompt, prompt with the fact). Raises BadSpec, BadEdit, BadBackbone."""
        of_edit: list[list[DrawnPrompt]] = [[] for _ in edits]
        for e, plain, told in pairs:
            row, edit = edits[e]
            loss = backbone.generator_loss(Prompt.of(plain), Prompt.of(told), row=row, seeds=SEEDS)
            with torch.no_grad():
                start = float(loss.distances(range(loss.points)).mean())
            if start <= 0:
                raise BadSpec(
                    f"the model takes '{told}' for '{plain}': the fact makes no difference. Set "
                    "other oracles."
                )
            of_edit[e].append(DrawnPrompt(loss, loss.column(edit.subject or ""), start))
        return cls(site, of_edit)

    def left(self, delta: Mapping[str, Tensor], rngs: Sequence[torch.Generator]) -> Tensor:
        """[E] remaining distance (1 at the start), mean over the prompts of an edit."""
        own_Ed = delta[self.site]
        each = [
            torch.stack([self._left(p, own_Ed[e], rng) for p in self.of_edit[e]]).mean()
            for e, rng in enumerate(rngs)
        ]
        return torch.stack(each)

    def _left(self, prompt: DrawnPrompt, delta_d: Tensor, rng: torch.Generator) -> Tensor:
        points = torch.randint(prompt.loss.points, (DRAWS,), generator=rng).tolist()
        shift = PromptShift(self.site, prompt.column, delta_d)
        return prompt.loss.distances(points, shift).mean() / prompt.start
