"""LLaVAs with text models of other families, whose blocks write the hidden states in other ways."""

from __future__ import annotations

import functools
from typing import Any

import torch

from errata.backbones.hf_vlm import HfVlm
from errata.testing.tiny_models import llava_parts, randomise

_FOUR: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA: dict[str, Any] = {**_FOUR, "intermediate_size": 64, "num_key_value_heads": 2}
#: model_type -> settings of its text config
TEXTS: dict[str, dict[str, Any]] = {
    # added as it is
    "llama": _LLAMA,
    # attention and FFN side by side
    "cohere": _LLAMA,
    # multiplied by a number
    "granite": {**_LLAMA, "residual_multiplier": 0.25},
    # behind a norm
    "gemma2": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "olmo2": _LLAMA,
    "glm4": {**_LLAMA, "head_dim": 8},
}


@functools.cache
def llava_with(text: str, dtype: torch.dtype = torch.float32) -> HfVlm:
    """A LLaVA with this text model; the gains of its norms are random too."""
    from transformers import CONFIG_MAPPING, LlavaConfig, LlavaForConditionalGeneration

    base, processor = llava_parts()
    given = base.config.to_dict()
    size = given["text_config"]["vocab_size"]
    config = LlavaConfig(
        **{**given, "text_config": CONFIG_MAPPING[text](vocab_size=size, **TEXTS[text])}
    )
    model = randomise(LlavaForConditionalGeneration(config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and p.dim() == 1 and "language_model" in name:
                p.add_(torch.empty_like(p).uniform_(-0.4, 0.4))
    return HfVlm(model.to(dtype), processor, name=f"tiny-{text}")
