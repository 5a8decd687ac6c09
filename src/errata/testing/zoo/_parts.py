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


def text(size: int, **more: Any) -> dict[str, Any]:
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
