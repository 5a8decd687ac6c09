"""Names of before for `errata.testing.tiny_models`, and of names that errata had before.

Bug reproducers outside this repository are written against them.
"""

import sys

import errata.backbones
import errata.cli
from errata.backbones import _weights
from errata.backbones.hf_vlm import HfVlm
from errata.backbones.micro_umm import MicroUmmBackbone
from errata.benchmarks.facts import edits
from errata.core.hooks.manager import HookManager
from errata.core.model.backbone import Backbone
from errata.testing.tiny_models import (
    DRAWING,
    FAMILIES,
    SPECIAL,
    WINDOWED,
    WORDS,
    blip2,
    gemma3,
    gemma_processor,
    llava,
    llava_parts,
    micro_umm,
    mistral,
    qwen3,
    qwen25,
    qwen_processor,
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
GemmaProcessor, QwenProcessor = gemma_processor, qwen_processor

# old name -> what it is now
Backbone.wires = property(lambda self: self.hooks)  # type: ignore[attr-defined]
HookManager.ports = property(lambda self: self.points)  # type: ignore[attr-defined]
errata.backbones._stored = _weights  # type: ignore[attr-defined]
sys.modules["errata.backbones._stored"] = _weights
errata.cli._edits = edits  # type: ignore[attr-defined]
sys.modules["errata.cli._edits"] = edits
