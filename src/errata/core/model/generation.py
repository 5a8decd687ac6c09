"""Backbones that draw pictures from a prompt.

Shapes: B rows, T columns, c width of the conditioning, R pictures, N image tokens, P their values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from errata.core.errors import BadBackbone
from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch, PrefixState
from errata.core.types import Prompt


@dataclass(frozen=True, slots=True)
class Stage:
    """A step between the text model and the picture: the output of `site` while drawing.

    name: `tap` (the hidden states that condition the generator), what lies between, `projected`,
    `blocks.{i}`, `velocity`; `logits` of a model that draws by tokens. A hook at `site` reads it
    inside the real call of `draw`. The picture itself is not a stage.
    """

    name: str
    site: str

    @property
    def in_text(self) -> bool:
        """Whether it holds the tokens of the prompt, the same in all steps of a drawing."""
        return not self.name.startswith(("blocks.", "velocity", "logits"))


class GeneratorLoss(ABC):
    """How far the drawing of a prompt is from that of another, the goal, by the generator's loss.

    Both are compared at some points: states of drawings of the goal, of different seeds and times.
    """

    @property
    @abstractmethod
    def points(self) -> int:
        """The number of points."""

    @abstractmethod
    def column(self, subject: str) -> int:
        """The column of the subject's last token where the text model reads the prompt.

        Raises BadEdit for a subject that is not in the prompt.
        """

    @abstractmethod
    def distances(self, points: Sequence[int], *hooks: Hook) -> Tensor:
        """[n] the distance at each of these points, with the live hooks and `hooks`.

        With gradients; raises BadBackbone where none reaches the generator.
        """


class ImageGenerator(Backbone, ABC):
    """A backbone that draws; `capabilities` holds `draw`.

    `draw` is enough to measure edits. Analyses read `path`; editors that search through the image
    generator need `conditioning`, `canvas` and `denoise`, or else `generator_loss`; the protocol
    `reasoning` needs `reasoning`. Each raises BadBackbone where the model does not offer it.
    """

    #: text between a rationale and the image prompt after it
    glue: str = "\n\n"
    #: settings of a drawing that were given: its pictures depend on them
    drawing: Mapping[str, Any] = MappingProxyType({})
    #: library that draws -> version
    drawn_by: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Tensor | None = None
    ) -> list[list[Any]]:
        """One PIL picture (RGB) per prompt and seed, with the live hooks; prompts are text.

        A seed fixes the initial noise, equal for all prompts. Raises TooLong.
        """

    def path(self) -> tuple[Stage, ...]:
        """The stages from the text model to the picture, in order."""
        raise self._not_offered("the stages of its drawing")

    def conditioning_columns(
        self, prompts: Sequence[Prompt], subjects: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """([B, T] real columns of the stages of text, those of the last mention of each subject).

        Raises BadEdit for a subject that is not in its prompt.
        """
        batch = self.encode(prompts)
        held = torch.zeros(batch.mask.shape, dtype=torch.bool)
        for b, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            first, last = (f(prompt, subject) for f in (self.first_column, self.last_column))
            held[b, first : last + 1] = True
        return batch.mask.bool().cpu(), held

    def conditioning(self, what: Batch | PrefixState, *, rows: Tensor | None = None) -> Tensor:
        """[B, T, c] conditioning of the image generator for each prompt, with gradients.

        The output of the `projected` stage; valid in the columns of `mask`.
        """
        raise self._not_offered("the conditioning of its image generator")

    @property
    def canvas(self) -> tuple[int, int]:
        """(N, P): image tokens of a picture, and values of each."""
        raise self._not_offered("the size of its pictures")

    def denoise(
        self, x_RNP: Tensor, moment_R: Tensor, conditioning_RTc: Tensor, mask_RT: Tensor
    ) -> Tensor:
        """[R, N, P] the picture that the generator predicts at time `moment`, with gradients.

        x is `moment * picture + (1 - moment) * noise` on the `canvas`; `conditioning_RTc` are rows
        of `conditioning`, valid in the columns of `mask`. No guidance.
        """
        raise self._not_offered("single steps of its image generator")

    def generator_loss(
        self, prompt: Prompt, goal: Prompt, *, row: int, seeds: Sequence[int]
    ) -> GeneratorLoss:
        """The loss of drawing `prompt` as `goal` is drawn from `seeds`, each with the patch `row`.

        Raises BadBackbone where the model draws by a call that no gradient passes.
        """
        raise self._not_offered("the loss of its image generator")

    #: whether `generator_loss` stands in place of `conditioning`, `canvas` and `denoise`
    has_own_loss: bool = False

    def reasoning(self, prompt: Prompt, category: str) -> Prompt:
        """The prompt that asks for a rationale of an image prompt: recall a fact, then a caption.

        In the words that the model was trained with. category: the kind of fact (a colour, a
        maker, ...). Raises BadSpec.
        """
        raise self._not_offered("rationales of image prompts")

    def _not_offered(self, what: str) -> BadBackbone:
        return BadBackbone(f"{self.name} does not offer {what}. Choose another model: micro-umm.")


def image_generator(backbone: Backbone) -> ImageGenerator:
    """The backbone as an `ImageGenerator`. Raises BadBackbone if it draws no pictures."""
    if not isinstance(backbone, ImageGenerator):
        raise BadBackbone(
            f"{backbone.name} draws no pictures. Choose a model that does: micro-umm."
        )
    return backbone
