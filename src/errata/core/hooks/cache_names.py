"""The keyword of a forward that holds the KV cache: transformers 5.24 renamed it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

#: Today's name and the former one.
NAMES = ("cache", "past_key_values")


def cache_in(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among the keywords of a forward; None without one."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def cache_keywords(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keywords that hand `cache` to `module`, under the name that its forward has."""
    if cache is None:
        return {"use_cache": False}
    return {_name_of(type(module).forward): cache, "use_cache": True}


@functools.cache
def _name_of(forward: Callable[..., Any]) -> str:
    named = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in named), NAMES[-1])
