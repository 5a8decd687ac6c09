"""Vision-language models of the zoo: image and text in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.testing.tiny_models import minigpt4
from errata.testing.zoo import (
    blip,
    experts,
    gemma_vl,
    idefics,
    llava,
    mixed,
    plain,
    qwen_vl,
    special,
    tiles,
)


def minigpt4_parts() -> tuple[Any, Any]:
    backbone = minigpt4()
    return backbone.model, backbone.processor


#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[Any, ...]] = {
    **llava.MODELS,
    **blip.MODELS,
    "minigpt4": ("Blip2ForConditionalGeneration (MiniGPT-4)", minigpt4_parts),
    **qwen_vl.MODELS,
    **gemma_vl.MODELS,
    **idefics.MODELS,
    **tiles.MODELS,
    **mixed.MODELS,
    **experts.MODELS,
    **plain.MODELS,
    **special.MODELS,
}
