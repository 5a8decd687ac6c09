"""What the configuration of a model says of its images, and which class loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def image_token(config: Any) -> int | None:
    """The id of image tokens: of the model's config, or of its vision tower's."""
    for owner in (config, getattr(config, "vision_config", None)):
        for name in ("image_token_id", "image_token_index"):
            if getattr(owner, name, None):
                return int(getattr(owner, name))
    return None


def auto_class(path: str, options: Mapping[str, Any]) -> Any:
    """The class of transformers for a model with images; few are registered as text models."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES,
    )

    kind = transformers.AutoConfig.from_pretrained(path, **options).model_type
    if kind in TEXT and kind not in WITH_IMAGES:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText
