"""Scope `dualedit`: the gate of DualEdit, from a state of the editor `dualedit`.

Source: Shi et al. 2025 (DualEdit), with the gate `prompt`: cosine of the last prompt tokens, at the
editor's gate layer, with the threshold that was tuned on near and far training questions when the
adapters were trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.scopes._cosine import CosineScope


class DualEditScope(CosineScope):
    """The nearest edit by the last prompt token, with the threshold of a DualEdit state."""

    name = "dualedit"
    state_name = "dualedit"

    @dataclass(frozen=True, kw_only=True)
    class Config(CosineScope.Config):
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
