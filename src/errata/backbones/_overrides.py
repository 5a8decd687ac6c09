"""Context managers that replace a forward, stop it early, or switch the attention kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, without effect on forwards of other threads."""
    here = threading.get_ident()

    def run(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == here else None

    return run


class StopForward(Exception):
    """Stops a forward early; `value` holds what was needed of it."""

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """In this thread `module` runs `forward`; its own forward may be an instance attribute."""
    attributes = vars(module)
    before, own, here = attributes.get("forward"), module.forward, threading.get_ident()

    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return (forward if threading.get_ident() == here else own)(*args, **kwargs)

    attributes["forward"] = dispatch
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before


@contextmanager
def attention_as(
    model: nn.Module, name: str, attend: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Attention uses the kernel `name` of transformers, or `attend`, registered under that name.

    `eager` computes the attention weights; fused kernels do not return them. A kernel that
    transformers makes no masks for gets none.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        if hasattr(config := getattr(module, "config", None), "_attn_implementation_internal"):
            configs[id(config)] = config
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    if attend is not None:
        ALL_ATTENTION_FUNCTIONS[name] = attend
    for config in configs.values():
        config._attn_implementation_internal = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        if attend is not None:
            ALL_ATTENTION_FUNCTIONS.pop(name)


@contextmanager
def stop_at(module: nn.Module, *, after_hook_point: bool = False) -> Iterator[None]:
    """The forward stops before `module` runs; the exception carries its arguments.

    after_hook_point: the hooks on the module's input run first.
    """

    def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise StopForward((args, kwargs))

    handle = module.register_forward_pre_hook(
        in_this_thread(stop), with_kwargs=True, prepend=not after_hook_point
    )
    try:
        yield
    finally:
        handle.remove()
