"""Tiny models whose processors give pictures of other shapes other numbers of tiles or pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from errata.backbones.hf_vlm import HfVlm
from errata.testing.tiny_models import llama_config, randomise, tokenizer


def llava_next() -> HfVlm:
    """Each picture is seen whole and in two or four tiles."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    grid = [[28, 56], [56, 28], [56, 56]]
    tok = tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=llama_config(len(tok)),
        image_token_index=3,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=grid,
    )
    processor = LlavaNextProcessor(  # type: ignore[no-untyped-call]
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    model = randomise(LlavaNextForConditionalGeneration(config))
    return HfVlm(model, processor, name="tiny-llava-next")


class TinyPixtralProcessor:
    """Does what Pixtral's processor does with one image and text; that one needs torchvision."""

    image_token = "<image>"
    chat_template = None

    def __init__(self) -> None:
        from transformers.models.pixtral.image_processing_pil_pixtral import (
            PixtralImageProcessorPil,
        )

        self.tokenizer = tokenizer()
        self.image_processor = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=14)

    def __call__(
        self, text: list[str], images: list[Any], return_tensors: str
    ) -> dict[str, torch.Tensor]:
        pixels = self.image_processor(images=images, return_tensors=return_tensors)
        height, width = (int(n) // 14 for n in pixels["image_sizes"][0])
        row = self.image_token * width
        full = "<|vision_start|>".join([row] * height) + "<|vision_end|>"
        encoded = self.tokenizer(
            [text[0].replace(self.image_token, full)], return_tensors=return_tensors
        )
        return {**encoded, **pixels, "image_sizes": torch.as_tensor(pixels["image_sizes"])}


def pixtral() -> HfVlm:
    """Each picture keeps its shape: other numbers of pixels and of image tokens."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        PixtralVisionConfig,
    )

    tok = tokenizer()
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        ),
        text_config=llama_config(len(tok)),
        image_token_index=3,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = randomise(LlavaForConditionalGeneration(config))
    return HfVlm(model, TinyPixtralProcessor(), name="tiny-pixtral")


#: name -> function that makes one
TILED: dict[str, Callable[[], HfVlm]] = {"llava_next": llava_next, "pixtral": pixtral}
