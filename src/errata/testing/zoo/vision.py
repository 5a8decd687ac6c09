"""Vision-language models of the zoo: image and text in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errata.testing.tiny_models import llava_parts, minigpt4


def minigpt4_parts() -> tuple[Any, Any]:
    backbone = minigpt4()
    return backbone.model, backbone.processor


#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "llava": ("LlavaForConditionalGeneration", llava_parts),
    "minigpt4": ("Blip2ForConditionalGeneration (MiniGPT-4)", minigpt4_parts),
}
