"""Vision-language models of the zoo: image and text in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.testing.tiny_models import llava_parts
from errata.testing.zoo import experts, mixed, plain, special

#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[Any, ...]] = {
    "llava": ("LlavaForConditionalGeneration", llava_parts),
    **mixed.MODELS,
    **experts.MODELS,
    **plain.MODELS,
    **special.MODELS,
}
