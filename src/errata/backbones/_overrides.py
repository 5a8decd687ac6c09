"""Detours in a model's own forward: other parts, an early end, another attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class StopForward(Exception):
    """Ends a forward once what is needed has been seen."""

    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` runs `forward` instead of its own, which may itself be an instance attribute."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


@contextmanager
def attention_as(
    model: nn.Module, name: str, attend: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Attention is computed by the library's function `name`, or by `attend` under that name.

    `eager`: step by step, so that its weights exist; fused kernels have none. A function that the
    library has no masks for is given none.
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
def stop_at(module: nn.Module, *, seen: bool = False) -> Iterator[None]:
    """The forward stops when `module` is about to run; the exception carries its arguments.

    `seen`: after the module's port has shown its input to patches.
    """

    def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
        raise StopForward((args, kwargs))

    handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=not seen)
    try:
        yield
    finally:
        handle.remove()
