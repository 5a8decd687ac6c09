"""Tiny models whose processors give pictures of other shapes other numbers of tiles or pixels."""

from __future__ import annotations

from collections.abc import Callable

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


def pixtral() -> HfVlm:
    """Each picture keeps its shape: other numbers of pixels and of image tokens."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        PixtralProcessor,
        PixtralVisionConfig,
    )
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

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
    processor = PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=14),
        tok,
        patch_size=14,
        image_token="<image>",
        image_break_token="<|vision_start|>",
        image_end_token="<|vision_end|>",
    )
    return HfVlm(model, processor, name="tiny-pixtral")


#: name -> function that makes one
TILED: dict[str, Callable[[], HfVlm]] = {"llava_next": llava_next, "pixtral": pixtral}
