"""The peak memory of many edits and questions in one batch, and what --memory makes of it.

    OMP_NUM_THREADS=1 python perf/batch_memory.py [--edits 30] [--blocks 30]
        [--budgets none,1GB,300MB] [--out F.json]

A random Llama of the shape of SmolLM2-135M: 30 blocks, d = 576, 49152 tokens, with the bundled
model's tokenizer. `--edits` joint edits of memit, then one question about each. Every row is a
process of its own, so that its peak is not that of another one. `mb` is the largest resident memory
beyond that before the work (weights, statistics and torch), `cpu_s` its CPU seconds.
`difference`: of the patch (relative) and of log-probabilities to the row without a limit. Numbers:
docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from children import run_child
from value_search import NAMES, edits

import errata
from errata.algorithms.locate_then_edit.corpus import Corpus, Document
from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect
from errata.core.measure.protocol import Ask
from errata.core.model.memory import measured_peak, resident_mb
from errata.core.types import Probe, Prompt
from errata.evaluation.answers import PromptRequest, ask_all

VOCABULARY = 49152


def model(blocks: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=blocks,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made: Any = LlamaForCausalLM(config)
    micro: Any = errata.load("micro-vlm")
    return errata.wrap(made.eval(), micro.tokenizer, name="random-135m")


def statistics(bb: Any, layers: Sequence[int]) -> Any:
    lines = [f"The {a} of the {b} is {c}" for a in NAMES for b in NAMES for c in NAMES]
    documents = [Document(Prompt.of(line)) for line in lines]
    source = Corpus("lines", "lines", len(lines), lambda: iter(documents))
    return collect(bb, source, StatsSettings(layers=tuple(layers)))


def work(count: int, steps: int, blocks: int, budget: str, found: Path) -> dict[str, Any]:
    """What one row does: the edits, then the questions."""
    torch.set_num_threads(1)
    bb, wanted = model(blocks), edits(count)
    if budget != "none":
        bb.memory = budget
    editor = errata.editor("memit", steps=steps, stop_loss=0.0)
    state = statistics(bb, editor.layers(bb))
    told: dict[str, Any] = {"budget": budget}
    before, began = settled_mb(), time.process_time()
    with measured_peak() as peak:
        patch = editor.edit(bb, wanted, state).patch
    told["edit"] = {"mb": (peak.mb or 0) - before, "cpu_s": time.process_time() - began}
    asked = [
        PromptRequest(Ask(e.id, Probe(e.id, e.prompt, "reliability", reference=e.target)))
        for e in wanted
    ]
    before, began = settled_mb(), time.process_time()
    with measured_peak() as peak, bb.applied(patch):
        answers = ask_all(bb, asked, step=0)
    told["ask"] = {"mb": (peak.mb or 0) - before, "cpu_s": time.process_time() - began}
    delta = {s: d["B"] @ d["A"] for s, d in ((s, dict(patch.part(s))) for s in sorted(patch.sites))}
    logprobs = [list(a.reference.logprobs) for a in answers if a.reference]
    torch.save({"delta": delta, "logprobs": logprobs}, found)
    return told


def settled_mb() -> float:
    """Resident memory, after freed blocks were given back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident_mb()


def difference(a: Any, b: Any) -> dict[str, float]:
    return {
        "patch": max(
            float((a["delta"][s] - d).norm() / d.norm()) for s, d in b["delta"].items()
        ),
        "logprobs": max(
            abs(x - y) for m, n in zip(a["logprobs"], b["logprobs"], strict=True)
            for x, y in zip(m, n, strict=True)
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--budgets", default="none,1GB,300MB")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--row", nargs=2, metavar=("BUDGET", "FILE"), help="one row, in this process"
    )
    args = parser.parse_args()
    if args.row:
        print(json.dumps(work(args.edits, args.steps, args.blocks, args.row[0], Path(args.row[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for budget in args.budgets.split(","):
            found = Path(folder) / f"{budget}.pt"
            row = run_child(
                __file__, "--edits", args.edits, "--steps", args.steps, "--blocks", args.blocks,
                "--row", budget, found,
            ).json()  # fmt: skip
            first = Path(folder) / f"{args.budgets.split(',')[0]}.pt"
            row["difference"] = difference(torch.load(found), torch.load(first))
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
