"""PMET: MEMIT's batch write with values searched at the FFN and the attention together.

Source: Li et al., AAAI 2024, code at xpq-tech/PMET 80643f2 (`edit/pmet`). At the last edited layer
two vectors are searched jointly, on the outputs of the down projection and of the attention's
output projection. Only the first is written; the second absorbs a part of the gradient and is
dropped. Once all target tokens are the argmax, the target's loss counts a tenth, and the search
ends if the KL term is at most 0.01. The residual is taken at the down projection's output and
divided by sqrt(layers left); the change is R K^T (K K^T + lambda C)^-1.

The output of the top down projection hardly depends on earlier layers, so the residual does not
shrink from layer to layer as in MEMIT: 1 + 1/sqrt(2) + ... of it is written in total, 3.23 times
for five layers. PMET is published so, and `left` in a patch's notes shows it.

Differences: as in `memit` (low-rank float32 deltas, Cholesky instead of an explicit inverse, seeded
context templates, EOS, `ridge`, `memory`); "all tokens are the argmax" is tested as such, there by
the equality of two floats.

`unike_umm`: gxx27/UniKE f8331cb, which keeps the weights and recomputes the keys of earlier edits
after each batch (`memory=recomputed`), with a KL factor of 0.0625 for the published 1 and lambda
15000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from errata.algorithms.locate_then_edit.multi_layer import CovarianceUpdate
from errata.algorithms.locate_then_edit.value_search import ValueSettings
from errata.core.model.backbone import Backbone

_PUBLISHED: Mapping[str, Any] = {
    "eos": False, "ridge": 0.0, "weight_decay": 0.5, "steps": 30, "clamp": 0.75,
}  # fmt: skip


class Pmet(CovarianceUpdate):
    """Values at FFN and attention; residuals at the FFN's output, divided by square roots."""

    name = "pmet"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"layers": (4, 5, 6), "token": "last_prompt", "mom2_weight": 500.0},
        "micro-umm": {"layers": (1, 2, 3), "mom2_weight": 5.0},
        "unike_umm": {
            "layers": (4, 5, 6, 7, 8), "lr": 0.1, "eos": False, "decay": "squared",
            "scaled": True, "ridge": 0.05, "mom2_weight": 15000.0, "max_upd_ratio": 1.0,
            "memory": "recomputed",
        },
        "gpt-j": {**_PUBLISHED, "layers": (3, 4, 5, 6, 7, 8), "lr": 0.2, "kl_factor": 1.0,
                  "mom2_weight": 6000.0},
        "gpt-neox": {**_PUBLISHED, "layers": (6, 7, 8, 9, 10), "clamp": 0.8, "kl_factor": 0.8},
        "easyedit": {"layers": (4, 5, 6, 7, 8), "steps": 20, "weight_decay": 0.5, "clamp": 1.0,
                     "eos": False, "ridge": 0.0},
    }  # fmt: skip

    def value_settings(self, backbone: Backbone, layer: int) -> ValueSettings:
        sites = [f"text.{layer}.mlp.down", f"text.{layer}.attn.o"]
        return self.search_settings(sites, downweight_when_right=True)

    def value_site(self, layer: int) -> str:
        return f"text.{layer}.mlp.down"

    def residual_divisor(self, i: int, layers: int) -> float:
        return float((layers - i) ** 0.5)
