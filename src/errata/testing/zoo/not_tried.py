"""Classes with images in the installed transformers that have no tiny build in the zoo, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_NEEDS_TIMM = "its vision tower needs the package timm"
_TWO_STACKS = "an encoder-decoder, which errata refuses"
#: type of the model in transformers -> why it is not tried; of the others no tiny build was made
_REASONS = {
    **dict.fromkeys(("gemma3n", "fast_vlm", "perception_lm"), _NEEDS_TIMM),
    **dict.fromkeys(
        ("pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), _TWO_STACKS
    ),
    "blip": "it writes captions: its text blocks are an encoder's with cross-attention",
    "diffusion_gemma": "it writes an answer by denoising, not token by token",
    "evolla": "it takes proteins, not images",
    "pi0": "it answers with the movements of a robot",
    "video_llava": "it takes videos beside images",
    "llava_next_video": "it takes videos beside images",
    "instructblipvideo": "it takes videos, not images",
}
UNKNOWN = "no tiny build was made"


@dataclass(frozen=True)
class NotTried:
    """name: type of the model in transformers. cls: its class."""

    name: str
    cls: str
    why: str


def not_tried(tried: Iterable[str]) -> list[NotTried]:
    """Every class that transformers loads as a model with images and text, but those of `tried`."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
    )

    known = set(tried)
    return [
        NotTried(name, cls, _REASONS.get(name, UNKNOWN))
        for name, cls in sorted(NAMES.items())
        if cls not in known
    ]
