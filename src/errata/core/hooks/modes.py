"""The caller's modes: what errata does is the same in all of them, and leaves them as they were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Inside, arithmetic on `device` has the dtype of its tensors."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def ordinary(*, gradients: bool | None = None) -> Iterator[None]:
    """Inside, `inference_mode` and `autocast` are off: tensors can be kept and used elsewhere.

    gradients: whether they are recorded; None = as outside.
    """
    recorded = torch.is_grad_enabled() if gradients is None else gradients
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_grad_enabled() != recorded:
            stack.enter_context(torch.set_grad_enabled(recorded))
        yield


def in_ordinary_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates what may need gradients, so that it works in whatever modes it is called."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ordinary(gradients=True):
            return function(*args, **kwargs)

    return run


class Frozen:
    """Puts a model in evaluation mode and stops gradients to its weights, for a forward.

    The model gets back its modes (`training` of each module, `requires_grad` of each parameter).
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.parameters = [m._parameters for m in self.modules if m._parameters]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        training = [m for m in self.modules if m.training]
        learnt = []
        if torch.is_grad_enabled():
            each = (p for named in self.parameters for p in named.values())
            learnt = [p for p in each if p is not None and p.requires_grad and not p.is_inference()]
        for module in training:
            module.training = False
        for parameter in learnt:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for module in training:
                module.training = True
            for parameter in learnt:
                parameter.requires_grad_(True)
