"""Networks that were trained once: a patch names the state they live in and holds no copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from errata.core.state import State

M = TypeVar("M", bound=nn.Module)


def trained(state: State, make: Callable[[], M], prefix: str = "") -> M:
    """The network whose tensors begin so in a state; made once, over these tensors themselves."""
    view = f"network/{prefix}"
    if view not in state.views:
        with torch.device("meta"):
            net = make()
        net.load_state_dict(state.under(prefix), assign=True)
        state.views[view] = net.requires_grad_(False).eval()
    return cast(M, state.views[view])
