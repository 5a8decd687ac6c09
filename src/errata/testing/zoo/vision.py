"""Vision-language models of the zoo: image and text in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

#: name -> (class, function that makes model and processor, words with which it is refused)
MODELS: Mapping[str, tuple[Any, ...]] = {
    **llava.MODELS,
    **blip.MODELS,
    **qwen_vl.MODELS,
    **gemma_vl.MODELS,
    **idefics.MODELS,
    **tiles.MODELS,
    **mixed.MODELS,
    **experts.MODELS,
    **plain.MODELS,
    **special.MODELS,
}
