"""The KV cache that grows in place holds what the library's holds, whoever copies or cuts it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from errata.backbones._suffix import copied
from errata.backbones._text_blocks.growing_cache import ROOM, GrowingLayer, growing_cache

HEADS, FEATURES, LAYERS = 2, 4, 3
Step = Callable[[Any], None]


def appended(columns: int, rows: int = 3, seed: int = 0) -> Step:
    def run(cache: Any) -> None:
        draw = torch.Generator().manual_seed(seed)
        for layer in range(LAYERS):
            keys, values = torch.randn(2, rows, HEADS, columns, FEATURES, generator=draw)
            returned = cache.update(keys, values, layer)
            assert torch.equal(returned[0], cache.layers[layer].keys)

    return run


def chosen(*rows: int) -> Step:
    return lambda cache: cache.batch_select_indices(torch.tensor(rows))


def cut(cache: Any) -> None:
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]


SEQUENCES: dict[str, list[Step]] = {
    "one by one": [appended(5), *(appended(1, seed=i) for i in range(2 * ROOM))],
    "rows chosen": [appended(5), chosen(0, 0, 2, 1), appended(2, 4), chosen(3, 1), appended(1, 2)],
    "columns set": [appended(5), appended(1), cut, appended(2), cut, appended(1)],
    "more than there is room for": [appended(5), appended(1), appended(3 * ROOM), appended(1)],
}


def states(cache: Any) -> list[Tensor]:
    return [s for layer in cache.layers for s in (layer.keys.clone(), layer.values.clone())]


@pytest.mark.parametrize("config", [None, LlamaConfig(num_hidden_layers=LAYERS)])
@pytest.mark.parametrize("name", SEQUENCES)
def test_it_holds_what_the_library_s_cache_holds(name: str, config: Any) -> None:
    mine, theirs = growing_cache(config), DynamicCache(config=config)
    for step in SEQUENCES[name]:
        step(mine)
        step(theirs)
        assert all(map(torch.equal, states(mine), states(theirs)))
        assert mine.get_seq_length() == theirs.get_seq_length()
    assert all(isinstance(layer, GrowingLayer) for layer in mine.layers)


def test_a_new_column_copies_no_earlier_one() -> None:
    cache = growing_cache(None)
    appended(5)(cache)
    appended(1)(cache)
    where = cache.layers[0].keys.data_ptr()
    for i in range(ROOM):
        appended(1, seed=i)(cache)
    assert cache.layers[0].keys.data_ptr() == where
    assert cache.layers[0].keys.shape[-2] == 6 + ROOM


@pytest.mark.parametrize("duplicate", [copied, copy.deepcopy])
def test_copies_do_not_write_into_each_other(duplicate: Callable[[Any], Any]) -> None:
    original = growing_cache(None)
    appended(5)(original)
    appended(1)(original)
    before = states(original)
    first, second = duplicate(original), duplicate(original)
    third = duplicate(first)
    for i, cache in enumerate((first, third, second, original)):
        appended(2, seed=10 + i)(cache)
    for i, cache in enumerate((first, third, second, original)):
        plain = DynamicCache()
        appended(2, seed=10 + i)(plain)
        for mine, new, old in zip(states(cache), states(plain), before, strict=True):
            assert torch.equal(mine, torch.cat([old, new], dim=-2))


def test_gradients_flow_through_what_is_appended() -> None:
    cache = growing_cache(None)
    appended(5)(cache)
    appended(1)(cache)
    keys = torch.randn(3, HEADS, 2, FEATURES, requires_grad=True)
    whole, _ = cache.update(keys, keys, 0)
    whole.sum().backward()
    assert keys.grad is not None
    assert torch.equal(keys.grad, torch.ones_like(keys))
