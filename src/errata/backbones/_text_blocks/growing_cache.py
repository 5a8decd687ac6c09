"""A KV cache that grows in place: a new token copies no keys and values of earlier ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

#: columns that are kept free behind those of a layer
ROOM = 32


class GrowingLayer(DynamicLayer):
    """Keys and values [B, h, K, n]: the first K columns of larger tensors.

    The larger tensors have one owner. A copy of the layer takes them over; the keys and values of
    the original stay as they are, and it makes larger ones again when it grows.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]
        self._grown: tuple[_Grown, _Grown] | None = None

    def __copy__(self) -> GrowingLayer:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        self._grown = None
        return copied

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        learnt = key_states.requires_grad or value_states.requires_grad
        if (learnt and torch.is_grad_enabled()) or not self.get_seq_length():
            states: tuple[Tensor, Tensor] = super().update(
                key_states, value_states, *args, **kwargs
            )
            return states
        keys, values = self._owned()
        self.keys, self.values = keys.append(key_states), values.append(value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.get_seq_length():
            keys, values = (grown.rows(indices) for grown in self._owned())
            self._grown, self.keys, self.values = (keys, values), keys.states, values.states

    def _owned(self) -> tuple[_Grown, _Grown]:
        """Around the keys and values that the layer has now, whoever has set them."""
        now: Any = (self.keys, self.values)
        if self._grown is None or any(
            grown.states is not own for grown, own in zip(self._grown, now, strict=True)
        ):
            self._grown = _Grown(now[0]), _Grown(now[1])
        return self._grown


class _Grown:
    """states [B, h, K, n]: all columns of `whole`, or the first ones."""

    def __init__(self, states: Tensor) -> None:
        self.states = self.whole = states

    def append(self, new: Tensor) -> Tensor:
        done = self.states.shape[-2]
        end = done + new.shape[-2]
        if end > self.whole.shape[-2]:
            earlier = self.states
            self.whole = _empty_like(earlier, len(earlier), end)
            self.whole[..., :done, :] = earlier
        self.whole[..., done:end, :] = new
        self.states = self.whole[..., :end, :]
        return self.states

    def rows(self, indices: Tensor) -> _Grown:
        """Some rows, each as often as it is named, with room for more columns."""
        if self.states.device.type != "cpu":
            return _Grown(self.states[indices])
        columns = self.states.shape[-2]
        chosen = _Grown(_empty_like(self.states, len(indices), columns))
        chosen.states = chosen.whole[..., :columns, :]
        for row, index in enumerate(indices.tolist()):
            chosen.states[row] = self.states[index]
        return chosen


def _empty_like(states: Tensor, rows: int, columns: int) -> Tensor:
    _, heads, _, features = states.shape
    return states.new_empty(rows, heads, columns + ROOM, features)


def growing_cache(config: Any) -> DynamicCache:
    """As `DynamicCache(config=config)`; its plain layers grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    return cache
