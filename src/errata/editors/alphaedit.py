"""AlphaEdit: MEMIT's values, written only into the null space of other texts' keys.

Source: Fang et al., ICLR 2025, code at jianghoucheng/AlphaEdit f5248d3. P projects on the
eigenvectors of the keys' second moment C whose eigenvalue is below a threshold. Per layer the
change solves [P (K K^T + K_p K_p^T) + L2 I] X = P K R^T, dW = X^T, with R as in MEMIT and K_p the
keys of earlier edits (`memory=keys`). C is used for P only.

Differences, beside those of `memit`:
- P is never formed, and never read from a file that may belong to another model. Its smaller basis
  comes from an eigendecomposition in float64 (in float32 the noise of eigenvalues, about 1e-7 of
  the largest, reaches the published threshold of 0.02) and is kept with the state;
- the solve is its dual, of the size of the keys, or the reduced basis where that is smaller;
- the threshold is absolute, as published, or relative to tr(C)/d (`threshold=relative`), since an
  absolute one depends on the scale of the activations;
- an empty null space is refused, or said if it is that of some layers only;
- the null space's dimension, |Pk|/|k| and `max_upd_ratio` clipping are noted per edit.

`unike_umm` and `unike_umm_blip3o`, `unike_umm_omnigen2`: gxx27/UniKE f8331cb. `nullspace_cov_reg`
adds a constant to C's diagonal, which only lowers the threshold by as much; `null_proj_alpha` < 1
softens P to alpha P + (1 - alpha) I, which is ridge regression with L2 inside the null space and
L2 / (1 - alpha) outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.algorithms.locate_then_edit import layer_stats
from errata.algorithms.locate_then_edit.multi_layer import MultiLayerUpdate
from errata.algorithms.locate_then_edit.written import notice
from errata.core.errors import BadSpec
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.linalg import covariance, solve
from errata.linalg.nullspace import NullSpace, null_space

_PUBLISHED: Mapping[str, Any] = {
    "eos": False, "lr": 0.5, "weight_decay": 0.5, "clamp": 0.75, "nullspace_threshold": 0.02,
    "L2": 10.0,
}  # fmt: skip
_UNIKE: Mapping[str, Any] = {
    "lr": 0.1, "eos": False, "decay": "squared", "scaled": True, "max_upd_ratio": 1.0,
    "nullspace_threshold": 0.02, "L2": 10.0,
}  # fmt: skip
_ON_QWEN: Mapping[str, Any] = {**_UNIKE, "layers": (6, 7, 8, 9, 10)}


class AlphaEdit(MultiLayerUpdate):
    """Projects the change on the null space of other texts' keys."""

    name = "alphaedit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {
            "layers": (4, 5, 6), "token": "last_prompt", "lr": 0.5, "threshold": "relative",
            "nullspace_threshold": 0.1, "L2": 1.0,
        },
        "micro-umm": {
            "layers": (1, 2, 3), "lr": 0.5, "threshold": "relative", "nullspace_threshold": 0.1,
            "L2": 1.0,
        },
        "unike_umm": {**_UNIKE, "layers": (4, 5, 6, 7, 8)},
        "unike_umm_blip3o": {**_ON_QWEN, "nullspace_cov_reg": 0.01, "null_proj_alpha": 0.7,
                             "max_upd_ratio": 0.5},
        "unike_umm_omnigen2": {**_ON_QWEN, "nullspace_cov_reg": 0.015, "null_proj_alpha": 0.6,
                               "max_upd_ratio": 0.4},
        "gpt2-xl": {**_PUBLISHED, "layers": (13, 14, 15, 16, 17), "steps": 20},
        "gpt-j": {**_PUBLISHED, "layers": (3, 4, 5, 6, 7, 8)},
        "llama-3": {**_PUBLISHED, "layers": (4, 5, 6, 7, 8), "lr": 0.1},
        "easyedit": {**_PUBLISHED, "layers": (4, 5, 6, 7, 8), "weight_decay": 1e-3, "clamp": 4.0,
                     "L2": 1.0},
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiLayerUpdate.Config):
        """nullspace_threshold: eigenvalues of the second moment below it span the null space.
        threshold: what nullspace_threshold is, `absolute` or `relative` to tr(C)/d. L2: ridge of
        the solve. null_proj_alpha: share of the update that is projected into the null space
        (UniKE), 1 = all. nullspace_cov_reg: added to the second moment before its null space is
        taken (UniKE), 0 = nothing.
        """

        retired: ClassVar[tuple[str, ...]] = ("ridge",)  # C is used for P only
        memory: Literal["none", "keys"] = "keys"
        nullspace_threshold: float = 0.02
        threshold: Literal["absolute", "relative"] = "absolute"
        L2: float = 10.0
        null_proj_alpha: float = 1.0
        nullspace_cov_reg: float = 0.0

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        super().__init__(preset, **passed)
        c = self.config
        if not 0 < c.null_proj_alpha <= 1 or not c.L2 > 0:
            raise BadSpec(
                f"editor '{self.name}': null_proj_alpha={c.null_proj_alpha}, L2={c.L2}. Give "
                "null_proj_alpha above 0 and up to 1, and L2 above 0."
            )

    def space(self, state: State, layer: int, part: str = layer_stats.FFN) -> NullSpace:
        """The null space of a layer, computed once per state."""
        c = self.config
        moment = layer_stats.moment(state, layer, part)
        bound = c.nullspace_threshold
        if c.threshold == "relative":
            bound *= covariance.scale(moment)
        bound -= c.nullspace_cov_reg
        name = f"null/{part}/{layer}/{bound}"
        if name not in state.views:
            state.views[name] = null_space(moment, bound)
        space: NullSpace = state.views[name]
        return space

    def remedy(self) -> str:
        c = self.config
        return (
            f"Raise nullspace_threshold (now {c.nullspace_threshold:g}, {c.threshold}), lower L2 "
            f"(now {c.L2:g}), or choose other --set layers=..."
        )

    def remarks(self, backbone: Backbone, states: Sequence[State]) -> list[str]:
        """Also of layers with an empty null space. Raises BadSpec where all are: it would write
        nothing.
        """
        lines, layers = super().remarks(backbone, states), self.layers(backbone)
        if self.config.null_proj_alpha < 1:
            return lines  # writes outside of the null space too
        for state in {id(s): s for s in states}.values():
            empty = [i for i in layers if not self.space(state, i).rank]
            line = self._empty(state, empty) if empty else ""
            if line and len(empty) == len(layers):
                raise BadSpec(f"editor '{self.name}': {line}")
            if line and line not in lines:
                lines.append(notice(self.name, line))
        return lines

    def _empty(self, state: State, layers: Sequence[int]) -> str:
        """What is said of layers with an empty null space."""
        c, last = self.config, layers[-1]
        moment = layer_stats.moment(state, last)
        unit = covariance.scale(moment) if c.threshold == "relative" else 1.0
        values = torch.linalg.eigvalsh(moment.double()) / unit
        less = f" less nullspace_cov_reg={c.nullspace_cov_reg:g}" if c.nullspace_cov_reg else ""
        return (
            f"no eigenvalue of the second moment of layers {', '.join(map(str, layers))} is below "
            f"nullspace_threshold={c.nullspace_threshold:g} ({c.threshold}){less}: the null space "
            f"is empty, and nothing is written there. In layer {last} they begin at "
            f"{values[0]:.3g}, and half of them are below {values.median():.3g}. Raise "
            "nullspace_threshold."
        )

    def key_factor(
        self, state: State, layer: int, keys_nd: Tensor, part: str = layer_stats.FFN
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        c, space = self.config, self.space(state, layer, part)
        keys = torch.cat([*self.past_keys(state, layer, part), keys_nd])
        alpha, new = c.null_proj_alpha, len(keys_nd)
        if space.inside and alpha == 1 and len(keys) > space.rank > 0:
            factor = solve.update_within(space.basis_dm, keys, c.L2, new)
        else:
            factor = solve.update(keys, space.project(keys, alpha) / c.L2, new)
        kept = space.project(keys_nd).norm(dim=1) / keys_nd.double().norm(dim=1)
        notes = [{"null_dim": space.rank, "null_share": round(float(k), 4)} for k in kept]
        return factor, notes
