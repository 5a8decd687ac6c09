"""Tokens that a model never answers: its forward overwrites their logits behind the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from errata.backbones._overrides import forward_as


@torch.no_grad()
def suppressed_ids(model: Any, text: nn.Module, width: int) -> tuple[int, ...]:
    """The ids whose logit is the smallest number whatever the text model says.

    Only a model that has pictures as tokens of its vocabulary is asked; its text model is left out.
    """
    if not getattr(model.config, "vocabulary_map", None):
        return ()
    weight = model.get_output_embeddings().weight
    state = torch.zeros(1, 1, width, dtype=weight.dtype, device=weight.device)
    with forward_as(text, lambda *args, **kwargs: BaseModelOutputWithPast(last_hidden_state=state)):
        ids = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
    lowest = torch.finfo(logits.dtype).min
    return tuple((logits <= lowest / 2).nonzero().flatten().tolist())
