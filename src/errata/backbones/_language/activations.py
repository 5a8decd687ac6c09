"""The activation of a feed-forward network, by what its module computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from errata.patches.neurons import ACTIVATIONS, activation

#: configuration fields that name it, for models whose activation is a function
_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation")
#: names of transformers that differ from those of errata
_NAMES = {
    "swish": "silu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}


def activation_of(hosts: Iterator[nn.Module], config: Any) -> tuple[str, str]:
    """(errata's name of the activation, or "" if it has none; the model's name for it).

    hosts: the modules that may own it, the innermost first.
    """
    for host in hosts:
        for module in (*host.children(), *vars(host).values()):
            if _may_be_one(module) and (name := _computed_by(module)):
                return name, name
    named = next((n for f in _FIELDS if (n := getattr(config, f, None))), "")
    known = _NAMES.get(str(named), str(named))
    return known if known in ACTIVATIONS else "", str(named)


def _may_be_one(module: Any) -> bool:
    """A module without weights, or a function of torch."""
    if isinstance(module, nn.Module):
        return not list(module.parameters()) and not list(module.children())
    return callable(module) and "torch" in str(getattr(module, "__module__", ""))


def _computed_by(module: Any) -> str:
    x = torch.linspace(-4, 4, 101)
    try:
        with torch.no_grad():
            y = module(x.clone())
    except Exception:  # a module that is not an activation
        return ""
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return ""
    return next((n for n in ACTIVATIONS if torch.allclose(y, activation(n, x), atol=1e-5)), "")


def activation_between(gate: Tensor, output: Tensor, after: Callable[[Tensor], Tensor]) -> str:
    """The activation of a gated FFN with these gate values and this output; "" if none fits.

    after: the output that an activated gate leads to.
    """
    size = float(output.float().abs().max())
    errors = {
        name: float((after(activation(name, gate)) - output).float().abs().max())
        for name in ACTIVATIONS
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] <= 1e-2 * size else ""
