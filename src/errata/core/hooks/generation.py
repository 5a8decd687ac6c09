"""One call of a model's own `generate`: its prompt, whatever its forwards are cut into."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.core.hooks.cache_names import NAMES
from errata.core.hooks.context import HookContext

_IDS = ("input_ids", "inputs_embeds")


@dataclass(eq=False)
class Generation:
    """One call of `generate`: its module and keyword arguments, and the prompt.

    rows, width: B and P. mask [B, P]: None where padding is unknown. whole: False if only the new
    part of the prompt is given, the rest being in the KV cache. in_pieces: the prompt is cut by
    `prefill_chunk_size`. ctx: of forwards without a cache.
    """

    module: nn.Module
    arguments: dict[str, Any]
    rows: int
    width: int
    mask: Tensor | None
    whole: bool
    in_pieces: bool
    ctx: HookContext | None = None

    @classmethod
    def of(cls, module: nn.Module, args: Any, kwargs: Any) -> Generation | None:
        """None if `generate` is given no prompt."""
        signature = inspect.signature(class_of(module).generate)
        given = dict(signature.bind_partial(module, *args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(name, {}))
        given = {k: v for k, v in given.items() if v is not None and v is not module}
        prompt = given.pop("inputs", None)
        for name in reversed(_IDS):
            prompt = given.get(name, prompt)
        if not isinstance(prompt, Tensor):
            return None
        given.setdefault("input_ids" if prompt.dim() == 2 else "inputs_embeds", prompt)
        config = given.get("generation_config") or getattr(module, "generation_config", None)
        size = given.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        rows, width = prompt.shape[:2]
        mask = given.get("attention_mask")
        if mask is None and rows == 1 and prompt.dim() == 2:
            pad = given.get("pad_token_id", getattr(config, "pad_token_id", None))
            if pad is None or not bool((prompt == pad).any()):
                mask = torch.ones_like(prompt)
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        whole = mask is None or mask.shape[1] == width
        width = width if mask is None else mask.shape[1]
        return cls(module, given, int(rows), int(width), mask, whole, size is not None)

    def forward_inputs(self) -> dict[str, Any]:
        """The arguments of one forward over the whole prompt."""
        parameters = inspect.signature(type(self.module).forward).parameters
        drop = (*NAMES, "use_cache", "labels", "cache_position", "return_dict")
        return {k: v for k, v in self.arguments.items() if k in parameters and k not in drop}


def class_of(module: nn.Module) -> Any:
    return type(module)
