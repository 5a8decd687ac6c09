"""Names of before for `errata.testing.tiny_models`, and three of before in errata itself.

Bug reproducers outside this repository are written against them.
"""

import sys

import errata.backbones
from errata.backbones import _weights
from errata.backbones.hf_vlm import HfVlm
from errata.backbones.micro_umm import MicroUmmBackbone
from errata.core.model.backbone import Backbone
from errata.testing.tiny_models import (
    DRAWING,
    FAMILIES,
    SPECIAL,
    WINDOWED,
    WORDS,
    GemmaProcessor,
    QwenProcessor,
    blip2,
    gemma3,
    llava,
    llava_parts,
    micro_umm,
    mistral,
    qwen3,
    qwen25,
    randomise,
    shared,
    tokenizer,
)

__all__ = [
    "DRAWING",
    "FAMILIES",
    "SPECIAL",
    "WINDOWED",
    "WORDS",
    "GemmaProcessor",
    "HfVlm",
    "MicroUmmBackbone",
    "QwenProcessor",
    "_finish",
    "blip2",
    "gemma3",
    "llava",
    "llava_parts",
    "micro_umm",
    "mistral",
    "qwen3",
    "qwen25",
    "randomise",
    "shared",
    "tokenizer",
]

_finish = randomise

# `bb.wires` is now `bb.hooks`; `errata.backbones._stored` is now `errata.backbones._weights`.
Backbone.wires = property(lambda self: self.hooks)  # type: ignore[attr-defined]
errata.backbones._stored = _weights  # type: ignore[attr-defined]
sys.modules["errata.backbones._stored"] = _weights
