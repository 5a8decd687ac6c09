"""Vision-language models of the zoo: image and text in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errata.testing.tiny_models import llava_parts

#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "llava": ("LlavaForConditionalGeneration", llava_parts),
}
