"""Parts that several models of the zoo are made of: tokenizers, tower and text settings."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from errata.testing.tiny_models import tokenizer


def vocabulary(*tokens: str, **named: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with more special tokens, each one token.

    named: tokens that processors read as attributes of the tokenizer: `image_token="<image>"`.
    """
    base = tokenizer()
    base.add_special_tokens({"additional_special_tokens": [*tokens, *named.values()]})
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=base.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_specific_special_tokens=named,
    )


def text_config(size: int, **more: Any) -> dict[str, Any]:
    """Settings of a text model with a vocabulary of this size: four blocks, 32 wide."""
    return {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


def tower(image: int = 28, patch: int = 14, **more: Any) -> dict[str, Any]:
    """Settings of a vision tower: two blocks, 24 wide. image, patch: sides in pixels."""
    return {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


def square(side: int) -> dict[str, int]:
    """An image size as image processors take it."""
    return {"height": side, "width": side}


#: 3-axis positions of the Qwen family, for heads of 8 features
THREE_AXES: dict[str, Any] = {
    "rope_type": "default",
    "mrope_section": [2, 1, 1],
    "rope_theta": 10000.0,
    "mrope_interleaved": True,
}


def qwen_processor(tok: Any, *, patch: int = 7) -> Any:
    """The processor of Qwen3-VL and Qwen3.5."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
    }
    return Qwen3VLProcessor(  # type: ignore[no-untyped-call]
        Qwen2VLImageProcessor(**sizes), tok, Qwen3VLVideoProcessor(**sizes)
    )


def qwen_vision(**changes: Any) -> dict[str, Any]:
    """Keywords of the vision towers of Qwen3-VL and Qwen3.5."""
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        **changes,
    }


#: token ids of the Qwen family in the tiny tokenizer
QWEN_IDS: dict[str, Any] = {
    "image_token_id": 6,
    "video_token_id": 7,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
}
