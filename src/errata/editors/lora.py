"""LoRA: a low-rank change of attention (or other) projections, fine-tuned on the edit alone.

Source: Hu et al. 2022 (W + (alpha / r) B A, A Gaussian, B zero), used as the editing baseline that
is often asked for. EasyEdit's LoRA trains q and v of every layer, rank 8, alpha 32, learning rate
5e-3, up to 70 steps (preset `paper`).

Differences: the factor alpha / r is part of B, whose step size is multiplied by it; under Adam that
is the same search. The result is a low-rank delta, exportable as an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from errata.algorithms.gradient import GradientEditor
from errata.core.editor import EditRequest
from errata.core.model.backbone import Backbone
from errata.patches._parts import PartsPatch
from errata.patches.delta import Delta
from errata.training.optimise import SearchSettings, generator


class Lora(GradientEditor):
    """Low-rank change at linear sites of some or all text blocks."""

    name = "lora"
    choice = 2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"lr": 1e-3, "steps": 25, "rank": 2},
        "paper": {"eos": False, "lr": 5e-3, "steps": 70, "rank": 8, "alpha": 32.0},
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(GradientEditor.Config):
        """rank: rank of the update. alpha: the update is scaled by alpha / rank. layers: text
        blocks that are trained, negative from the end, () = all. parts: linear sites of a block
        that are trained.
        """

        steps: int = 50
        rank: int = 8
        alpha: float = 16.0
        layers: tuple[int, ...] = ()
        parts: tuple[str, ...] = ("attn.q", "attn.v")

    def settings(self) -> SearchSettings:
        return replace(super().settings(), lr_scale={"B": self.config.alpha / self.config.rank})

    def weight_size(self, backbone: Backbone, site: str, name: str) -> float:
        """B A changes a weight by the root mean square of the weights when B moves by this."""
        into, _ = backbone.weight(site)
        if name == "A":
            return float(into**-0.5)
        return backbone.weight_rms(site) * float((into / self.config.rank) ** 0.5)

    def edited_sites(self, backbone: Backbone) -> list[str]:
        c = self.config
        return backbone.part_sites([backbone.layer(i) for i in c.layers], c.parts)

    def start(self, backbone: Backbone, request: EditRequest) -> PartsPatch:
        rank, rows = self.config.rank, len(request)
        parts = {}
        for site in self.edited_sites(backbone):
            into, out = backbone.weight(site)
            drawn = [
                torch.randn(
                    rank,
                    into,
                    generator=generator(request.seed, group[0].id, group[0].prompt.text, site),
                )
                for group in request.groups
            ]
            parts[site] = {"A": torch.stack(drawn) / into**0.5, "B": torch.zeros(rows, out, rank)}
        return Delta(parts, rows=rows)
