"""Writes a tiny Llama as a GGUF file, as the converter of llama.cpp does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

#: module of transformers -> name of its tensor in GGUF
_IN_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_NORMAL, _CONTROL = 1, 3


def write_llama(model: Any, tokenizer: Any, path: Path, *, quantised: bool = False) -> None:
    """quantised: matrices are written in blocks of eight bits (Q8_0)."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = model.config
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        for part, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if part in name:
                values = _interleaved(values, heads)
        kind = GGMLQuantizationType.F32
        if quantised and values.ndim == 2 and "layers" in name:
            kind = GGMLQuantizationType.Q8_0
            values = quants.quantize(values, kind)
        writer.add_tensor(_name(name), np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: Any, tokenizer: Any) -> None:
    import json

    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = set(tokenizer.all_special_tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if t in special else _NORMAL for t in tokens])
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)


def _name(name: str) -> str:
    path, kind = name.rsplit(".", 1)
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{kind}"
    _, _, block, part = path.split(".", 3)
    return f"blk.{block}.{_IN_BLOCK[part]}.{kind}"


def _interleaved(values: Any, heads: int) -> Any:
    """The rows of each head as llama.cpp's rotary embedding pairs them: neighbours."""
    out, into = values.shape
    return values.reshape(heads, 2, out // heads // 2, into).swapaxes(1, 2).reshape(out, into)
