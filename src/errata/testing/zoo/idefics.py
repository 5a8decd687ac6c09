"""Idefics 2 and 3 and SmolVLM: pictures are cut into tiles, or padded with a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers as hf

from errata.testing.tiny_models import randomise
from errata.testing.zoo._parts import text_config, tower, vocabulary

_FAKE, _END = "<fake_token_around_image>", "<end_of_utterance>"
_TILED = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}


def idefics2() -> tuple[Any, Any]:
    tok = vocabulary(_FAKE, _END)
    images = hf.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 56})
    processor = hf.Idefics2Processor(images, tok, image_seq_len=4)
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**text_config(len(tok), sliding_window=None)),
        vision_config=tower(56),
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        image_token_id=3,
    )
    return randomise(hf.Idefics2ForConditionalGeneration(config)), processor


def _tiles() -> list[str]:
    return [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]


def idefics3() -> tuple[Any, Any]:
    tok = vocabulary(_FAKE, _END, "<global-img>", *_tiles())
    processor = hf.Idefics3Processor(hf.Idefics3ImageProcessor(**_TILED), tok, image_seq_len=4)
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text_config(len(tok))),
        vision_config=tower(28, 7),
        scale_factor=2,
        image_token_id=3,
    )
    return randomise(hf.Idefics3ForConditionalGeneration(config)), processor


def smolvlm() -> tuple[Any, Any]:
    tok = vocabulary(_FAKE, _END, "<global-img>", "<video>", *_tiles())
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**_TILED),
        tok,
        hf.SmolVLMVideoProcessor(**_TILED, video_sampling={"fps": 1, "max_frames": 4}),
        image_seq_len=4,
    )
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**text_config(len(tok))),
        vision_config=tower(28, 7),
        scale_factor=2,
        image_token_id=3,
    )
    return randomise(hf.SmolVLMForConditionalGeneration(config)), processor


#: name -> (class, function that makes model and processor)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "idefics2": ("Idefics2ForConditionalGeneration", idefics2),
    "idefics3": ("Idefics3ForConditionalGeneration", idefics3),
    "smolvlm": ("SmolVLMForConditionalGeneration", smolvlm),
}
