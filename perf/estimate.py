"""What `errata doctor --editor` counts against what torch gave out, on three random models.

    OMP_NUM_THREADS=1 python perf/estimate.py [--out estimate.csv]

Eight edits in one batch (ft_l, lora, memit: two steps) and eight questions, on a Llama of 8 blocks
(d = 256, 8000 tokens), a GPT-2 of 6 (d = 192, 6000 tokens) and a LLaVA of 6 (d = 256, 64 image
tokens). A row: MB counted, MB of tensors that lived at once, their ratio, and the ratio with the
model's weights on both sides. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from batch_memory import NAMES
from speed import cases_of, random_llava
from value_search import edits

import errata
from errata.algorithms.locate_then_edit.corpus import Corpus, Document
from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect
from errata.core.measure.protocol import Ask
from errata.core.model.memory import allocated_peak
from errata.core.types import Edit, Probe, Prompt
from errata.evaluation.answers import EXTRA, PromptRequest, ask_all
from errata.evaluation.memory.estimate import weight_bytes

COUNT = 8
EDITORS: dict[str, dict[str, Any]] = {
    "ft_l": {"steps": 2, "lr": 1e-3}, "lora": {"steps": 2, "lr": 1e-3}, "memit": {"steps": 2},
}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8000, hidden_size=256, intermediate_size=688, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024, **TOKENS,
    )  # fmt: skip
    return wrapped(LlamaForCausalLM(config))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=6000, n_embd=192, n_layer=6, n_head=6, n_positions=512, **TOKENS)
    return wrapped(GPT2LMHeadModel(config))


def wrapped(model: Any) -> Any:
    micro: Any = errata.load("micro-vlm")
    return errata.wrap(model.eval(), micro.tokenizer, name=type(model).__name__)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama, "gpt2": gpt2, "llava": lambda: random_llava(64, layers=6, width=256),
}  # fmt: skip


def statistics(bb: Any, layers: Sequence[int]) -> Any:
    lines = [f"The {a} of the {b} is {c}" for a in NAMES[:4] for b in NAMES for c in NAMES]
    documents = [Document(Prompt.of(line)) for line in lines]
    source = Corpus("lines", "lines", len(lines), lambda: iter(documents))
    return collect(bb, source, StatsSettings(layers=tuple(layers)))


def measured(bb: Any, name: str, wanted: Sequence[Edit]) -> tuple[float, float]:
    """(bytes counted, bytes that lived at once) of eight edits, or of eight questions."""
    if name == "ask":
        asked = [
            PromptRequest(Ask(e.id, Probe(e.id, e.prompt, "reliability", reference=e.target)))
            for e in wanted
        ]
        batch = bb.encode([e.prompt for e in wanted], [e.target for e in wanted])
        counted = bb.bytes_to_ask(batch, max(map(len, batch.targets)) + EXTRA)
        bb.forget()
        with allocated_peak() as peak:
            ask_all(bb, asked, step=0)
        return counted, (peak.mb or 0) * 2**20
    editor = errata.editor(name, **EDITORS[name]).for_backbone(bb)
    state = statistics(bb, editor.layers(bb)) if editor.uses_state else None
    editor.edit(bb, wanted[:1], state)  # what is made once, and kept
    held = 0
    if state is not None:
        held = sum(t.numel() * t.element_size() for t in state.views.values())
    with allocated_peak() as peak:
        editor.edit_rows(bb, wanted, [state] * len(wanted))
    return editor.need(bb, wanted, state) - held, (peak.mb or 0) * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for model, make in MODELS.items():
        torch.manual_seed(0)
        bb = make()
        shown = [c.edit for c in cases_of(64) if c.edit.prompt.images]
        wanted = shown[:COUNT] if model == "llava" else edits(COUNT)
        for name in ("ask", *EDITORS):
            counted, peak = measured(bb, name, wanted)
            weights = weight_bytes(bb)
            rows.append({
                "model": model, "what": name, "counted, MB": round(counted / 1e6, 1),
                "measured, MB": round(peak / 1e6, 1), "ratio": round(counted / peak, 2),
                "with weights": round((counted + weights) / (peak + weights), 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    if args.out:
        with args.out.open("w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
