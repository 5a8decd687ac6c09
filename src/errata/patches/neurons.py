"""Neurons: extra key-value pairs beside an FFN, y += act(x K + b) V (T-Patcher, UniKE intrinsic).

A gated FFN gets o = act(x K_g + b_g) * (x K_u + b_u); a plain one o = act(x K + b). `shared` [o] is
a direction that is added to every value (UniKE Eq. 6: V + beta zeta'), which adds (sum_j o_j)
shared. Arithmetic in float32.

Shapes: x [B, T, n] -> y [B, T, d]; key, up [R?, n, e], their biases [R?, e], value [R?, e, d];
e neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from errata.patches._parts import Parts, PartsPatch
from errata.patches._rows import joined

#: the dimension of the neurons
NEURONS = {"key": -1, "key_bias": -1, "up": -1, "up_bias": -1, "value": 0}
ACTIVATIONS = ("silu", "relu", "relu2", "gelu", "gelu_tanh", "quick_gelu")


def activation(name: str, x: Tensor) -> Tensor:
    if name == "gelu_tanh":
        return nn.functional.gelu(x, approximate="tanh")
    if name == "relu2":
        return nn.functional.relu(x).square()
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return getattr(nn.functional, name)(x)  # type: ignore[no-any-return]


class Neurons(PartsPatch):
    """Extra neurons at `text.{i}.mlp` sites.

    `parts`: site -> {"key", "key_bias", "value"}; a gated FFN also has "up" and "up_bias";
    "shared" is optional.
    """

    option_names = ("act",)

    def __init__(self, parts: Parts, *, act: str = "silu", rows: int | None = None) -> None:
        super().__init__(parts, rows=rows)
        assert act in ACTIVATIONS, act
        self.act = act

    def preactivations(self, site: str, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """[..., e] key pre-activations; x [R?, m, n]."""
        part = self.part(site)
        key = {k: (p if rows is None else p[rows]) for k, p in part.items()}
        return x.float() @ key["key"] + _lift(key["key_bias"])

    def change(self, x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        # biases are added in place: thousands of neurons make large intermediate results
        out = activation(self.act, (x @ part["key"]).add_(_lift(part["key_bias"])))
        if "up" in part:
            out = out * (x @ part["up"]).add_(_lift(part["up_bias"]))
        y = out @ part["value"]
        if "shared" in part:
            y = y + out.sum(-1, keepdim=True) * _lift(part["shared"])
        return y

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """All neurons concatenated; a shared direction is added to the values of its patch."""
        first = patches[0]
        if any(p.rows is not None for p in patches):
            return None
        values = [{s: _full_values(p.frozen_part(s, NEURONS)) for s in p.names} for p in patches]
        forms = {
            (p.act, tuple((s, *sorted(t[s])) for s in sorted(t)))
            for p, t in zip(patches, values, strict=True)
        }
        if len(forms) != 1:
            return None
        parts: dict[str, dict[str, Tensor]] = {}
        for site in first.names:
            parts[site] = {
                name: joined([t[site][name] for t in values], dim)
                for name, dim in NEURONS.items()
                if name in values[0][site]
            }
        one = cls(parts, act=first.act).requires_grad_(False)
        one.filled = {s: sum(len(t[s]["value"]) for t in values) for s in first.names}
        return one


def _full_values(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the shared direction added to the values: row j becomes v_j + shared."""
    tensors = {k: p for k, p in part.items() if k != "shared"}
    if "shared" in part:
        tensors["value"] = tensors["value"] + part["shared"]
    return tensors


def _lift(bias: Tensor) -> Tensor:
    return bias if bias.dim() == 1 else bias[:, None]
