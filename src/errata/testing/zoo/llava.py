"""LLaVA and models made like it: a tower, a projector, and a text model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import llava_parts, randomise
from errata.testing.zoo._parts import square, text_config, tower, vocabulary

_GRID = [[28, 56], [56, 28], [56, 56]]


def vipllava() -> tuple[Any, Any]:
    processor = llava_parts()[1]
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower()),
        text_config=hf.LlamaConfig(**text_config(len(processor.tokenizer))),
        image_token_index=3,
        image_seq_length=4,
        vision_feature_layer=[-2, 0],
    )
    return randomise(hf.VipLlavaForConditionalGeneration(config)), processor


def llava_next() -> tuple[Any, Any]:
    tok = vocabulary()
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**tower()),
        text_config=hf.LlamaConfig(**text_config(len(tok))),
        image_token_index=3,
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size=square(28), image_grid_pinpoints=_GRID
    )
    processor = hf.LlavaNextProcessor(
        images,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return randomise(hf.LlavaNextForConditionalGeneration(config)), processor


def llava_onevision() -> tuple[Any, Any]:
    tok = vocabulary("<video>")
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(), vision_use_head=False),
        text_config=hf.Qwen2Config(**text_config(len(tok))),
        image_token_index=3,
        video_token_index=tok.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-1,
    )
    images = hf.LlavaOnevisionImageProcessor(size=square(28), image_grid_pinpoints=_GRID)
    processor = hf.LlavaOnevisionProcessor(
        images,
        tok,
        hf.LlavaOnevisionVideoProcessor(size=square(28)),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    return randomise(hf.LlavaOnevisionForConditionalGeneration(config)), processor


def _pixtral_processor(patch: int, merge: int) -> Any:
    tok = vocabulary("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=patch)
    return hf.PixtralProcessor(images, tok, patch_size=patch, spatial_merge_size=merge)


def pixtral() -> tuple[Any, Any]:
    """Each picture keeps its shape: other numbers of pixels and of image tokens."""
    processor = _pixtral_processor(14, 1)
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**tower(56)),
        text_config=hf.MistralConfig(**text_config(len(processor.tokenizer), sliding_window=None)),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return randomise(hf.LlavaForConditionalGeneration(config)), processor


def mistral3() -> tuple[Any, Any]:
    processor = _pixtral_processor(7, 2)
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**tower(56, 7)),
        text_config=hf.MistralConfig(**text_config(len(processor.tokenizer), sliding_window=None)),
        image_token_index=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return randomise(hf.Mistral3ForConditionalGeneration(config)), processor


#: name -> (class, function that makes model and processor)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "llava": ("LlavaForConditionalGeneration", llava_parts),
    "llava_next": ("LlavaNextForConditionalGeneration", llava_next),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", llava_onevision),
    "vipllava": ("VipLlavaForConditionalGeneration", vipllava),
    "pixtral": ("LlavaForConditionalGeneration (Pixtral)", pixtral),
    "mistral3": ("Mistral3ForConditionalGeneration", mistral3),
}
