"""PMET: MEMIT's batch write with values searched at the FFN and the attention together.

Source: Li et al., AAAI 2024, code at xpq-tech/PMET 80643f2 (`edit/pmet`). At the last edited layer
two vectors are searched jointly, on the outputs of the down projection and of the attention's
output projection. Once all target tokens are the argmax, the target's loss counts a tenth, and the
search ends if the KL term is at most 0.01. The residual is divided by sqrt(layers left); the change
is R K^T (K K^T + lambda C)^-1.

As published (`write=ffn`, in all presets of published models) only the first vector is written, and
the second, which has absorbed a part of the gradient, is dropped. The residual is taken at the down
projection's output. That of the top layer hardly depends on earlier layers, so the residual does
not shrink from layer to layer as in MEMIT: 1 + 1/sqrt(2) + ... of it is added to the hidden states
in total, 3.23 times for five layers. `left` in a patch's notes is measured at that output, which
the top layer brings to its value. With `write=both` the second vector is written too, into the
output projections of the attention of the same layers, with residual, keys and second moment taken
there.

By default (`write=stream`) the residual is that of the hidden states behind the top block, with
both vectors in them. So nothing of what was searched is dropped, and the residual shrinks from
layer to layer: in total it is written once. On SmolLM2-135M the published way says the new answer
for 55 % of the edits (docs/results/real-weights.md). Where a norm stands behind the FFN, each layer
has values of its own, as in `memit`, which are searched at the down projections alone.

Differences: as in `memit` (low-rank float32 deltas, Cholesky instead of an explicit inverse, seeded
context templates, EOS, lambda, `ridge`, `memory`); "all tokens are the argmax" is tested as such,
there by the equality of two floats.

`unike_umm`: gxx27/UniKE f8331cb, which keeps the weights and protects the keys of earlier edits
(`memory=keys`), with a KL factor of 0.0625 for the published 1 and lambda
15000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from errata.algorithms.locate_then_edit.layer_stats import (
    ATTENTION,
    FFN,
    StatsSettings,
    site_of,
    tensor_of,
)
from errata.algorithms.locate_then_edit.multi_layer import CovarianceUpdate
from errata.algorithms.locate_then_edit.value_search import ValueSettings
from errata.core.model.backbone import Backbone
from errata.core.state import State

_PUBLISHED: Mapping[str, Any] = {
    "write": "ffn", "eos": False, "ridge": 0.0, "lr": 0.5, "weight_decay": 0.5, "steps": 30,
    "clamp": 0.75, "mom2_weight": 15000.0,
}  # fmt: skip


class Pmet(CovarianceUpdate):
    """Values at FFN and attention; residuals at the FFN's output, divided by square roots."""

    name = "pmet"
    state_settings = (*CovarianceUpdate.state_settings, "write")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"write": "ffn", "layers": (4, 5, 6), "token": "last_prompt", "lr": 0.5,
                      "mom2_weight": 500.0},
        "micro-umm": {"write": "ffn", "layers": (1, 2, 3), "lr": 0.5, "mom2_weight": 5.0},
        "unike_umm": {
            "write": "ffn", "layers": (4, 5, 6, 7, 8), "lr": 0.1, "eos": False, "decay": "squared",
            "scaled": True, "ridge": 0.05, "mom2_weight": 15000.0, "max_upd_ratio": 1.0,
            "memory": "keys",
        },
        "gpt-j": {**_PUBLISHED, "layers": (3, 4, 5, 6, 7, 8), "lr": 0.2, "kl_factor": 1.0,
                  "mom2_weight": 6000.0},
        "gpt-neox": {**_PUBLISHED, "layers": (6, 7, 8, 9, 10), "clamp": 0.8, "kl_factor": 0.8},
        "easyedit": {"write": "ffn", "layers": (4, 5, 6, 7, 8), "lr": 0.5, "steps": 20,
                     "weight_decay": 0.5, "clamp": 1.0, "eos": False, "ridge": 0.0,
                     "mom2_weight": 15000.0},
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(CovarianceUpdate.Config):
        """write: what is brought to its value: the hidden states (`stream`), the output of the
        `ffn` alone, or those of FFN and attention (`both`).

        `both` needs key statistics of the attention, which `prepare` then collects.
        """

        write: Literal["stream", "ffn", "both"] = "stream"

    def settings_of_state(self) -> dict[str, Any]:
        """Statistics with those of the attention serve without them too."""
        settings = super().settings_of_state()
        return {k: v for k, v in settings.items() if k != "write" or v == "both"}

    def _made_with(self, state: State) -> dict[str, Any]:
        made = super()._made_with(state)
        if self.config.write == "both":
            layers = state.meta.get("layers", ())
            has = all(tensor_of("moment", i, ATTENTION) in state.tensors for i in layers)
            return {**made, "write": "both" if has else "ffn"}
        return {k: v for k, v in made.items() if k != "write"}

    def stats_settings(self, layers: tuple[int, ...]) -> StatsSettings:
        return StatsSettings(layers=layers, attention=self.config.write == "both")

    def value_settings(self, backbone: Backbone, layer: int) -> ValueSettings:
        sites = [site_of(layer), site_of(layer, ATTENTION)]
        if self.config.write == "stream" and self.value_site(backbone, layer) == site_of(layer):
            sites.pop()  # it would be dropped
        return self.search_settings(sites, downweight_when_right=True)

    def value_site(self, backbone: Backbone, layer: int) -> str:
        if self.config.write == "stream":
            return super().value_site(backbone, layer)
        return site_of(layer)

    def written(self, backbone: Backbone, top: int) -> dict[str, str]:
        both = {ATTENTION: site_of(top, ATTENTION), FFN: site_of(top)}
        return both if self.config.write == "both" else super().written(backbone, top)

    def residual_divisor(self, i: int, layers: int) -> float:
        return float((layers - i) ** 0.5)
