"""The architecture of micro-vlm: an ordinary LLaVA, only small."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

SIDE, PATCH = 40, 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
MEAN, STD = 0.5, 0.25


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
    )


def text_config(vocab_size: int, ids: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )


def build_model(vocab_size: int, ids: dict[str, int], tower: CLIPVisionModel | None) -> nn.Module:
    """A fresh model around a trained tower; the projector starts with Xavier weights."""
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(vocab_size, ids),
        image_token_index=ids["<image>"],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    if tower is not None:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    for m in model.model.multi_modal_projector.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
    return model


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """[N, 40, 40, 3] bytes -> [N, 3, 40, 40] floats, as the shipped image processor makes them."""
    x = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255
    return (x - MEAN) / STD
