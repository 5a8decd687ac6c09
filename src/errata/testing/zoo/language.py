"""Language models of the zoo: text in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errata.testing.tiny_models import llama_config, randomise, tokenizer


def llama() -> tuple[Any, Any]:
    from transformers import LlamaForCausalLM

    tok = tokenizer()
    return randomise(LlamaForCausalLM(llama_config(len(tok)))), tok


#: name -> (class, function that makes model and tokenizer)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "llama": ("LlamaForCausalLM", llama),
}
