"""The architecture of pocket-vlm: an ordinary LLaVA around SmolLM2-135M, which stays frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from errata.backbones._language import packaged

LANGUAGE = "smollm2-135m"
SIDE, PATCH = 64, 16
IMAGE_TOKENS = (SIDE // PATCH) ** 2
MEAN, STD = 0.5, 0.25
#: a token that the tokenizer reserves and that no text uses
RESERVED = "<gh_stars>"


def folder() -> Path:
    return packaged.folder(LANGUAGE)


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=256,
        hidden_act="gelu",
    )


def config() -> LlavaConfig:
    tokenizer = AutoTokenizer.from_pretrained(folder())
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=AutoConfig.from_pretrained(folder()),
        image_token_index=tokenizer.convert_tokens_to_ids(RESERVED),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


class Eye(nn.Module):
    """Tower and projector, the trained parts: pictures -> [n, IMAGE_TOKENS, width of the text]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            whole = LlavaForConditionalGeneration(config())
        self.tower = type(whole.model.vision_tower)(vision_config())
        self.projector = type(whole.model.multi_modal_projector)(config())
        # what a trained tower gives has a standard deviation of about 4 in each dimension
        nn.init.normal_(
            self.projector.linear_1.weight, std=0.25 * vision_config().hidden_size ** -0.5
        )
        nn.init.normal_(self.projector.linear_2.weight, std=0.02)
        nn.init.zeros_(self.projector.linear_1.bias)
        nn.init.zeros_(self.projector.linear_2.bias)

    def groups(self, *, tower: float, projector: float) -> list[dict[str, Any]]:
        """Parameters for an optimiser, with the highest learning rates of the two parts.

        The projector's first layer has small weights, and a smaller rate.
        """
        parts = self.tower, self.projector.linear_1, self.projector.linear_2
        rates = tower, projector / 4, projector
        return [
            {"params": list(m.parameters()), "lr": r} for m, r in zip(parts, rates, strict=True)
        ]

    @property
    def width(self) -> int:
        return int(self.tower.config.hidden_size)

    def features(self, pixels: Tensor) -> Tensor:
        """[n, IMAGE_TOKENS, width of the tower]."""
        return self.tower(pixel_values=pixels).last_hidden_state[:, 1:]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.features(pixels))


def language_model(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=dtype)
    return model.requires_grad_(False).eval()
