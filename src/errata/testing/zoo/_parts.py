"""Parts that several models of the zoo share: tokenizers, text configurations, image processors."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from errata.testing.tiny_models import tokenizer


def tokenizer_with(*special: str, **named: str) -> Any:
    """The tiny tokenizer with more special tokens. named: by which attribute."""
    tok = tokenizer()
    tok.add_tokens([*special, *named.values()], special_tokens=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tok.backend_tokenizer,
        bos_token=tok.bos_token,
        eos_token=tok.eos_token,
        pad_token=tok.pad_token,
        extra_special_tokens=named,
    )


def text_config(size: int, **changes: Any) -> dict[str, Any]:
    """Keywords of a small text model with `size` tokens: 4 blocks, width 32."""
    return {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }


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
