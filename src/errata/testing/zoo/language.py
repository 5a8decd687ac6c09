"""Language models of the zoo: text in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import transformers

from errata.testing.tiny_models import randomise, tokenizer

#: how most configurations name the sizes of a tiny model
_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
#: with `n_embd`, as GPT-2
_GPT: Mapping[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}
_EIGHT: Mapping[str, Any] = {**_SIZES, "head_dim": 8}
#: experts, two of four for a token
_EXPERTS: Mapping[str, Any] = {**_EIGHT, "num_experts": 4, "num_experts_per_tok": 2}
#: every second block has a linear attention
_LINEAR: Mapping[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def causal(family: str, sizes: Mapping[str, Any], **options: Any) -> tuple[Any, Any]:
    """A model of the class `{family}ForCausalLM` with random weights, and its tokenizer."""
    tok = tokenizer()
    kind: Any = getattr(transformers, _class(family))
    config = kind.config_class(
        vocab_size=len(tok), bos_token_id=1, eos_token_id=2, pad_token_id=0, **{**sizes, **options}
    )
    return randomise(kind(config)), tok


#: name -> (family, sizes, further options of the configuration)
_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    "llama": ("Llama", _SIZES, {}),
    "mistral": ("Mistral", _SIZES, {"sliding_window": 9}),
    "qwen2": ("Qwen2", _SIZES, {}),
    "qwen3": ("Qwen3", _EIGHT, {}),
    "gemma": ("Gemma", _EIGHT, {}),
    "gemma2": ("Gemma2", _EIGHT, {"query_pre_attn_scalar": 8, "sliding_window": 9}),
    "gemma3_text": (
        "Gemma3",
        _EIGHT,
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "phi": ("Phi", _SIZES, {}),
    "phi3": ("Phi3", _SIZES, {}),
    "olmo": ("Olmo", _SIZES, {}),
    "olmo2": ("Olmo2", _SIZES, {}),
    "gpt2": ("GPT2", _GPT, {}),
    "gptj": ("GPTJ", _GPT, {"rotary_dim": 4}),
    "codegen": ("CodeGen", _GPT, {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", _GPT, {}),
    "gpt_neox": ("GPTNeoX", {k: v for k, v in _SIZES.items() if "key_value" not in k}, {}),
    "gpt_neo": (
        "GPTNeo",
        {},
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "window_size": 9,
            "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 2]],
        },
    ),
    "opt": (
        "OPT",
        {},
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": ("Bloom", {}, {"hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "mpt": ("Mpt", {}, {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 512}),
    "falcon": (
        "Falcon",
        {},
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    "starcoder2": ("Starcoder2", _SIZES, {}),
    "stablelm": ("StableLm", _SIZES, {}),
    "granite": ("Granite", _SIZES, {"logits_scaling": 3.0, "residual_multiplier": 0.7}),
    "cohere": ("Cohere", _SIZES, {"logit_scale": 0.25}),
    "cohere2": ("Cohere2", _SIZES, {"logit_scale": 0.25, "sliding_window": 9}),
    "glm": ("Glm", _EIGHT, {}),
    "glm4": ("Glm4", _EIGHT, {}),
    "smollm3": ("SmolLM3", _SIZES, {}),
    "exaone4": ("Exaone4", _SIZES, {"sliding_window": 9}),
    "ernie4_5": ("Ernie4_5", _EIGHT, {}),
    "nemotron": ("Nemotron", _SIZES, {}),
    "mixtral": ("Mixtral", _SIZES, {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2Moe",
        _EXPERTS,
        {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS, {"moe_intermediate_size": 32}),
    "lfm2": ("Lfm2", _SIZES, {"layer_types": ["conv", "full_attention"] * 2}),
    "qwen3_5_text": ("Qwen3_5", _EIGHT, _LINEAR),
    "qwen3_next": (
        "Qwen3Next",
        _EXPERTS,
        {**_LINEAR, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {**_SIZES, "num_key_value_heads": 4},
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "olmo3": ("Olmo3", _SIZES, {"sliding_window": 9}),
    "hunyuan_v1_dense": ("HunYuanDenseV1", _EIGHT, {}),
    "xglm": (
        "XGLM",
        {},
        {
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 4,
            "attention_heads": 4,
            "max_position_embeddings": 512,
        },
    ),
    "gpt_oss": ("GptOss", _EXPERTS, {"num_local_experts": 4, "sliding_window": 9}),
}

#: what UniKE's memory needs; name -> editor -> words of the line with which it refuses the class
_NO_QKV = dict.fromkeys(("unike",), "no separate attention 'q'")
_NO_LINEAR = dict.fromkeys(("ft_l", "memit", "unike"), "experts")
_UNFIT: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("phi3", "gpt2", "codegen", "gpt_bigcode", "gpt_neox"), _NO_QKV),
    **dict.fromkeys(("bloom", "mpt", "falcon"), _NO_QKV),
    **dict.fromkeys(("lfm2", "qwen3_5_text", "deepseek_v3"), _NO_QKV),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"), _NO_LINEAR),
    "qwen3_next": {**_NO_LINEAR, **_NO_QKV},
    "gpt_neo": {"unike": "does not know the widths"},
}


def _class(family: str) -> str:
    return f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"


#: name -> (class, function that makes model and tokenizer, words with which it is refused, editors
#: that refuse it)
MODELS: Mapping[str, tuple[str, Callable[[], tuple[Any, Any]], str, Mapping[str, str]]] = {
    name: (_class(family), partial(causal, family, sizes, **options), "", _UNFIT.get(name, {}))
    for name, (family, sizes, options) in _FAMILIES.items()
}
