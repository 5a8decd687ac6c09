"""Scope `trained`: SERAC's scope network, from a state of the editor `serac`.

Source: Mitchell et al., ICML 2022. Score: exp(-|query - key|^2), against a threshold of 0.5. The
network is trained on rephrased questions, other pictures and implied questions against near and far
ones (`errata prepare MODEL --editor serac`), at one block, which is that of the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from errata.core.model.backbone import Backbone
from errata.core.model.recorder import PromptStates
from errata.core.model.scope import BlockScope, squared_gaps
from errata.networks.scope import ScopeNetwork


class TrainedScope(BlockScope):
    """A trained metric on what enters one block."""

    name = "trained"
    needs_state = True
    state_name = "serac"

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockScope.Config):
        """layer: the block whose input is read; null = the one that the state was trained at.
        threshold: least similarity of a question that belongs to an edit; null = 0.5.
        """

    def for_model(self, backbone: Backbone) -> Self:
        state, c = self.prepared(backbone), self.config
        made = state.settings.get("layer")
        layer = c.layer if c.layer is not None else made
        layer = backbone.depth // 2 if layer is None else layer
        return self.read_at(backbone, layer, 0.5 if c.threshold is None else c.threshold)

    @property
    def network(self) -> ScopeNetwork:
        assert self.state is not None
        return ScopeNetwork.of(self.state)

    def to(self, device: torch.device) -> None:
        self.network.to(device)

    def query(self, prompts: PromptStates) -> Tensor:
        query: Tensor = self.network(*prompts.parts)[0]
        return query

    def of_edit(self, prompts: PromptStates) -> Tensor:
        key: Tensor = self.network(*prompts.parts)[1]
        return key

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.exp(-squared_gaps(query, keys)).float()

    def opens(self, score: Tensor) -> Tensor:
        opens: Tensor = score > self.config.threshold
        return opens
