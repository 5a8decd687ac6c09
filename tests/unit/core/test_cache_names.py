"""The KV cache is handed over, and found, under the old and the new name of its keyword."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import nn

from errata.core.hooks.cache_names import cache_in, cache_keywords


class Former(nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return past_key_values


def accepts_the_former_name(forward: Any) -> Any:
    """As transformers 5.24 wraps every forward."""

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert "past_key_values" not in kwargs, "this warns"
        return forward(self, *args, **kwargs)

    return wrapped


class Today(nn.Module):
    @accepts_the_former_name
    def forward(self, input_ids: Any, cache: Any = None, use_cache: bool = True) -> Any:
        return cache


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return kwargs.get("past_key_values")


@pytest.mark.parametrize("module", [Former(), Today(), Anything()])
def test_a_cache_arrives(module: nn.Module) -> None:
    cache = object()
    keywords = cache_keywords(module, cache)
    assert module(0, **keywords) is cache and keywords["use_cache"] is True
    assert cache_in(keywords) is cache
    assert cache_keywords(module, None) == {"use_cache": False}, "no name that could be wrong"
    assert cache_in({"past_key_values": None, "cache": None}) is None
