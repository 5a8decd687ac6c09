"""Encoders of hidden states as plain tensors: h -> MLP((h - mean) / std).

A patch that needs a trained encoder holds its numbers, not a module with a class of its own.

Shapes: h [..., d]; mean, std [d]; weights `w0`, `b0`, `w1`, ...: [out, in] and [out].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def encode(h: Tensor, weights: Weights) -> Tensor:
    """[..., d] -> [..., e] in float32: linear layers with GELU between them."""
    x = (h.float() - weights["mean"].float()) / weights["std"].float()
    depth = sum(name.startswith("w") for name in weights)
    for i in range(depth):
        x = torch.nn.functional.linear(x, weights[f"w{i}"].float(), weights[f"b{i}"].float())
        if i + 1 < depth:
            x = torch.nn.functional.gelu(x)
    return x


def unit(x: Tensor) -> Tensor:
    """Vectors of length one along the last dimension; zero stays zero."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.clamp(min=1e-12)
