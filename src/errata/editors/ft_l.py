"""FT-L: fine-tunes the output matrix of the last FFN on the edit alone.

Source: the usual baseline of UniKE (2024), VisEdit and DualEdit. Three public ports disagree:
LiveEdit's ft_vl at b46217b trains the down projection of the last layer (AdamW 1e-3, 25 steps, stop
below 1e-2), VLKEB at 10951b7 both FFN matrices (10 to 20 fixed steps; presets `vlkeb` for
LLaVA-1.5, `vlkeb-blip2-opt`, `vlkeb-minigpt4`), UniKE's first commit 84f99d0 every tensor of the
last layer (SGD). We follow LiveEdit, the closest to the published tables, as preset `paper`.

Differences: no weight is written, the change is a dense delta; targets end with EOS unless `paper`;
parameters are chosen by site, not by a part of their name.

ROME's FT-L (kmeng01/rome 106c882, `baselines/ft`) is another one: after every step no weight may
differ from the unedited one by more than a small number (`max_change`), and the first layer is
trained. Presets `rome-gpt2-xl` and `rome-gpt-j` have its values. It predicts all target tokens
from the last token of the prompt, here each follows the ones before it. LiveEdit has the same clamp
and leaves it off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from errata.algorithms.gradient import GradientEditor
from errata.core.editor import EditRequest
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.patches._parts import PartsPatch
from errata.patches.delta import Delta
from errata.training.optimise import SearchSettings

#: fixed steps on both FFN matrices (there AdamW with a weight decay of 0.01, here Adam)
_VLKEB: Mapping[str, Any] = {"eos": False, "stop_loss": 0.0, "parts": ("mlp.up", "mlp.down")}
_ROME: Mapping[str, Any] = {"eos": False, "lr": 5e-4, "steps": 25, "layers": (0,)}


class FtL(GradientEditor):
    """Dense change of FFN matrices, last down projection by default."""

    name = "ft_l"
    choice = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"lr": 3e-2, "steps": 25, "stop_loss": 5e-2, "layers": (-4,)},
        "paper": {"eos": False, "lr": 1e-3, "steps": 25, "layers": (-1,), "parts": ("mlp.down",)},
        "rome-gpt2-xl": {**_ROME, "max_change": 5e-4},
        "rome-gpt-j": {**_ROME, "max_change": 5e-5},
        "vlkeb": {**_VLKEB, "lr": 1e-4, "steps": 10},
        "vlkeb-blip2-opt": {**_VLKEB, "lr": 2e-4, "steps": 15},
        "vlkeb-minigpt4": {**_VLKEB, "lr": 1e-4, "steps": 15},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(GradientEditor.Config):
        """layers: text blocks that are trained, negative from the end. parts: linear sites of a
        block that are trained. max_change: the most by which any single weight may change, as in
        ROME's FT-L; 0 = no limit.
        """

        layers: tuple[int, ...] = (-1,)
        parts: tuple[str, ...] = ("mlp.down",)
        max_change: float = 0.0

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        most = self.config.max_change
        if not 0 <= most < float("inf"):
            raise BadSpec(
                f"editor '{self.name}': max_change={most} is no limit of a weight's change. Give a "
                "number above 0, such as 5e-4, or 0 for no limit."
            )

    def idle(self) -> Mapping[str, str]:
        idle = dict(super().idle())
        return idle if self.config.steps else {**idle, "max_change": "steps=0"}

    def settings(self) -> SearchSettings:
        return replace(super().settings(), max_change=self.config.max_change)

    def edited_sites(self, backbone: Backbone) -> list[str]:
        c = self.config
        layers = [backbone.layer(i) for i in c.layers]
        return backbone.part_sites(layers, c.parts) if layers else []

    def start(self, backbone: Backbone, request: EditRequest) -> PartsPatch:
        parts = {}
        for site in self.edited_sites(backbone):
            into, out = backbone.weight(site)
            parts[site] = {"dense": torch.zeros(len(request), out, into)}
        return Delta(parts, rows=len(request))
