"""Trained networks of patches: a patch names the state that holds the network, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from errata.core.state import State

M = TypeVar("M", bound=nn.Module)


def trained(state: State, make: Callable[[], M], prefix: str = "") -> M:
    """The network with the tensors `prefix*` of a state; built once, without copying them."""
    view = f"network/{prefix}"
    if view not in state.views:
        with torch.device("meta"):
            net = make()
        net.load_state_dict(state.under(prefix), assign=True)
        state.views[view] = net.requires_grad_(False).eval()
    return cast(M, state.views[view])
