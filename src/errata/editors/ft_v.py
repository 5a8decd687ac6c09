"""FT-V: fine-tunes the connector between vision tower and language model on the edit alone.

Source: LiveEdit's ft_vl and VLKEB's FT "vision" settings (b46217b, 10951b7), which tune the
projector of LLaVA and the Q-Former of BLIP-2, never the vision tower; DualEdit's table has FT-V
with a text locality of exactly 100, which any tuning of the connector has, since text-only inputs
do not pass it. LiveEdit's settings are preset `paper`, VLKEB's `vlkeb` (LLaVA-1.5),
`vlkeb-blip2-opt` and `vlkeb-minigpt4`.

Differences: the change is a dense delta (weights and biases of every Linear of the connector); the
vision tower runs once per search; targets end with EOS unless a published preset is chosen; of
BLIP-2 and MiniGPT-4 the projection behind the Q-Former is tuned too. An edit without an image does
not pass the connector and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from errata.algorithms.gradient import GradientEditor
from errata.core.editor import EditRequest
from errata.core.errors import BadBackbone, BadEdit
from errata.core.model.backbone import Backbone
from errata.patches._parts import PartsPatch
from errata.patches.delta import Delta


class FtV(GradientEditor):
    """Dense change of all linear maps of the connector."""

    name = "ft_v"
    modalities = frozenset({"image"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"lr": 1e-3, "steps": 25},
        "paper": {"eos": False, "lr": 1e-3, "steps": 25},
        "vlkeb": {"eos": False, "stop_loss": 0.0, "lr": 1e-4, "steps": 10},
        "vlkeb-blip2-opt": {"eos": False, "stop_loss": 0.0, "lr": 2e-4, "steps": 15},
        "vlkeb-minigpt4": {"eos": False, "stop_loss": 0.0, "lr": 1e-4, "steps": 15},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(GradientEditor.Config):
        """bias: whether the biases are trained too."""

        bias: bool = True

    def start(self, backbone: Backbone, request: EditRequest) -> PartsPatch:
        for _, edit in request.edits:
            if not edit.prompt.images:
                raise BadEdit(
                    f"edit '{edit.id or edit.prompt.text[:60]}' has no image; ft_v changes only "
                    "how images enter. Give --image FILE, or use ft_l."
                )
        sites = [s for s in backbone.hooks.sites if s.startswith("bridge.")]
        if not sites:
            raise BadBackbone(
                f"{backbone.name} has no connector that errata could find. "
                f"See errata doctor {backbone.name}."
            )
        rows, parts = len(request), {}
        for site in sites:
            into, out = backbone.weight(site)
            parts[site] = {"dense": torch.zeros(rows, out, into)}
            if self.config.bias:
                parts[site]["bias"] = torch.zeros(rows, out)
        return Delta(parts, rows=rows)
