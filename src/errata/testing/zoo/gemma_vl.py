"""Gemma 3 and 4, PaliGemma 1 and 2: attention in both directions over images or prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import randomise
from errata.testing.zoo._parts import square, text_config, tower, vocabulary

_MARKS = {
    "image_token": "<image>",
    "boi_token": "<|vision_start|>",
    "eoi_token": "<|vision_end|>",
}
_WINDOWED = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2}


def gemma3() -> tuple[Any, Any]:
    tok = vocabulary(**_MARKS)
    config = hf.Gemma3Config(
        text_config=text_config(len(tok), head_dim=8, query_pre_attn_scalar=8, **_WINDOWED),
        vision_config=tower(28, 7),
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=5,
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=square(28)), tok, image_seq_length=4
    )
    return randomise(hf.Gemma3ForConditionalGeneration(config)), processor


def gemma4() -> tuple[Any, Any]:
    tok = vocabulary(
        **_MARKS, audio_token="<|audio|>", boa_token="<|audio_start|>", eoa_token="<|audio_end|>"
    )
    cut = {"patch_size": 7, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(**cut),
        tok,
        hf.Gemma4VideoProcessor(**cut),
        image_seq_length=70,
    )
    config = hf.Gemma4Config(
        text_config=text_config(
            len(tok),
            head_dim=8,
            global_head_dim=8,
            hidden_size_per_layer_input=0,
            use_bidirectional_attention="vision",
            **_WINDOWED,
        ),
        vision_config={
            **tower(),
            "num_key_value_heads": 2,
            "head_dim": 12,
            "patch_size": 7,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        image_token_id=3,
        boi_token_id=4,
        eoi_token_id=5,
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tok.convert_tokens_to_ids("<|audio|>"),
        boa_token_id=tok.convert_tokens_to_ids("<|audio_start|>"),
        eoa_token_index=tok.convert_tokens_to_ids("<|audio_end|>"),
    )
    return randomise(hf.Gemma4ForConditionalGeneration(config)), processor


def _paligemma(kind: Callable[..., Any], **more: Any) -> tuple[Any, Any]:
    tok = vocabulary()
    images = hf.SiglipImageProcessor(size=square(28))
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tok)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**tower(), vision_use_head=False),
        text_config=kind(**text_config(len(tok), head_dim=8, **more)),
        image_token_index=3,
        projection_dim=32,
        hidden_size=32,
    )
    return randomise(hf.PaliGemmaForConditionalGeneration(config), 7), processor


def paligemma() -> tuple[Any, Any]:
    """The whole prompt is read in both directions, an answer in one."""
    return _paligemma(hf.GemmaConfig)


def paligemma2() -> tuple[Any, Any]:
    return _paligemma(hf.Gemma2Config, query_pre_attn_scalar=8, **_WINDOWED)


#: name -> (class, function that makes model and processor)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "gemma3": ("Gemma3ForConditionalGeneration", gemma3),
    "gemma4": ("Gemma4ForConditionalGeneration", gemma4),
    "paligemma": ("PaliGemmaForConditionalGeneration", paligemma),
    "paligemma2": ("PaliGemmaForConditionalGeneration", paligemma2),
}
