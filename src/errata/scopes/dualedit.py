"""Scope `dualedit`: the gate of DualEdit, from a state of the editor `dualedit`.

Source: Shi et al. 2025 (DualEdit), with the gate `prompt`: cosine of the last prompt tokens, at the
editor's gate layer, with the threshold that was tuned on near and far training questions when the
adapters were trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor
from torch.nn.functional import normalize

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.model.recorder import PromptStates
from errata.core.model.scope import BlockScope


class DualEditScope(BlockScope):
    """The nearest edit by the last prompt token, with the threshold of a DualEdit state."""

    name = "dualedit"
    state_name = "dualedit"

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockScope.Config):
        """layer: the block whose input is read, negative from the end; null = the gate layer of the
        editor for this model. threshold: least cosine of a question that belongs to an edit; null =
        the one of the state.
        """

    def for_model(self, backbone: Backbone) -> Self:
        layer, threshold = self.config.layer, self.config.threshold
        if layer is None:
            editor: Any = registry.load("editors", self.state_name)()
            layer = int(editor.for_backbone(backbone).gate_site(backbone).split(".")[1])
        layer = backbone.layer(layer)
        if threshold is None:
            by_gate = self.prepared(backbone).meta["thresholds"]
            threshold = by_gate.get("prompt", {}).get(f"text.{layer}.in")
        if threshold is None:
            raise BadSpec(
                f"the state of 'dualedit' has no threshold for block {layer}. Set one: --scope-set "
                "threshold=0.9, or choose another layer."
            )
        return self.read_at(backbone, layer, float(threshold))

    def query(self, prompts: PromptStates) -> Tensor:
        return normalize(prompts.last, dim=-1)

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        return query @ keys.T
