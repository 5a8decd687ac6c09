"""Scopes that compare last prompt tokens by their cosine."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from errata.core.model.recorder import PromptStates
from errata.core.model.scope import BlockScope


class CosineScope(BlockScope):
    """Score: the cosine of the last prompt tokens of question and edit, at one block."""

    def query(self, prompts: PromptStates) -> Tensor:
        return normalize(prompts.last, dim=-1)

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        return query @ keys.T
