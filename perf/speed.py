"""Speed of edits and of probes, as ratios within one run.

    OMP_NUM_THREADS=1 python perf/speed.py [--out speed.json] [--quick]

Three comparisons, on micro-vlm and on a random LLaVA of 12 blocks, d = 512, with 64 and 576 image
tokens: edits searched in batches of 16 against one by one; a gradient step resumed from the states
below the last four blocks against one through the whole model; probes as `errata bench` answers
them against batch 1, each from its own pixels. The functions timed are those of `errata bench`.
Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import errata
from errata.backbones.hf_vlm import HfVlm
from errata.core import registry
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Ask
from errata.core.model.backbone import Backbone
from errata.core.types import Answer, Case, Edit
from errata.evaluation.answers import PromptRequest, ask_all
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.training.optimise import encode_edits, target_loss


def random_llava(tokens: int, *, layers: int = 12, width: int = 512) -> HfVlm:
    """A LLaVA with random weights and the bundled model's tokenizer; `tokens` = side squared."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    micro = errata.load("micro-vlm")
    side, patch = round(tokens**0.5), 14
    size = side * patch
    tok = micro.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=size,
            patch_size=patch,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tok),
            hidden_size=width,
            intermediate_size=1376,
            num_hidden_layers=layers,
            num_attention_heads=8,
            max_position_embeddings=2048,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        ),
        image_token_index=micro.image_id,
        image_seq_length=tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    processor = LlavaProcessor(
        images,
        tok,
        patch_size=patch,
        vision_feature_select_strategy="default",
        image_token=micro.image_token,
        num_additional_image_tokens=1,
    )
    return HfVlm(LlavaForConditionalGeneration(config), processor, name=f"random-llava-{tokens}")


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `run`, after one warm-up."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def cases_of(count: int) -> list[Case]:
    spec = BenchmarkSpec.parse("microworld:vqa@dev")
    loaded = registry.load("benchmarks", spec.name)().load(spec)
    return list(loaded.cases[:: max(1, len(loaded.cases) // count)])[:count]


def finding(
    backbone: Backbone, edits: Sequence[Edit], editor: str, steps: int, repeats: int
) -> dict[str, Any]:
    """Edits per second in rows of 16 and one by one, and how far the two results are apart."""
    e = registry.load("editors", editor)(
        steps=steps, stop_loss=0.0, **({"memory_weight": 0.0} if editor == "tpatcher" else {})
    )
    rows = timed(lambda: e.edit_rows(backbone, edits), repeats)
    single = timed(lambda: [e.edit(backbone, [x]) for x in edits], repeats)
    together = [f.patch for f in e.edit_rows(backbone, edits)]
    alone = [e.edit(backbone, [x]).patch for x in edits]
    batch, index = encode_edits(backbone, [[x] for x in edits], eos=True)
    with torch.no_grad():
        with backbone.applied(Rows(together)):
            a, _ = target_loss(backbone.logits(batch, rows=index), batch)
        with backbone.applied(Rows(alone)):
            b, _ = target_loss(backbone.logits(batch, rows=index), batch)
    return {
        "editor": editor,
        "edits": len(edits),
        "steps": steps,
        "rows_edits_per_s": len(edits) / rows,
        "single_edits_per_s": len(edits) / single,
        "ratio": single / rows,
        "max_relative_loss_difference": float(((a - b).abs() / b.abs().clamp(min=1e-6)).max()),
    }


def resuming(backbone: Backbone, edits: Sequence[Edit], repeats: int, k: int = 4) -> dict[str, Any]:
    """A gradient step on the last k blocks: from a cached state, and from the embedded prompt."""
    layer = backbone.depth - k
    site = f"text.{layer}.mlp.down"
    into, out = backbone.weight(site)
    patch = Delta({site: {"dense": torch.zeros(out, into)}})
    batch, _ = encode_edits(backbone, [[e] for e in edits], eos=True)
    bottom, entered = backbone.enter(batch, 0), backbone.enter(batch, layer)

    def step(state: Any) -> torch.Tensor:
        with backbone.applied(patch):
            loss, _ = target_loss(backbone.logits(state), batch)
        return torch.autograd.grad(loss.sum(), list(patch.parameters()))[0]

    full, resumed = timed(lambda: step(bottom), repeats), timed(lambda: step(entered), repeats)
    a, b = step(bottom), step(entered)
    ideal = (backbone.depth + k) / (2 * k)
    return {
        "blocks": backbone.depth,
        "k": k,
        "rows": batch.size,
        "full_s": full,
        "resumed_s": resumed,
        "ratio": full / resumed,
        "ideal": ideal,
        "of_ideal": full / resumed / ideal,
        "max_relative_difference": float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)),
    }


def asking(backbone: HfVlm, cases: Sequence[Case], repeats: int) -> dict[str, Any]:
    """Probes per second before and after a row of edits, against batch 1.

    `exact` and `token` come from one prefill.
    """
    e = registry.load("editors", "ft_l")(steps=2)
    patch = Rows([f.patch for f in e.edit_rows(backbone, [c.edit for c in cases])])
    asked = [PromptRequest(Ask(c.id, p), row) for row, c in enumerate(cases) for p in c.probes]

    def both(size: int) -> list[Answer]:
        before = ask_all(backbone, asked, step=-1, batch_size=size)
        known = {(a.case, a.probe): a for a in before}
        with backbone.applied(patch):
            return before + ask_all(backbone, asked, step=0, before=known, batch_size=size)

    def from_pixels() -> list[Answer]:
        answers: list[Answer] = []
        for one in asked:
            backbone.forget()
            answers += ask_all(backbone, [one], step=-1, batch_size=1)
        known = {(a.case, a.probe): a for a in answers}
        with backbone.applied(patch):
            for one in asked:
                backbone.forget()
                answers += ask_all(backbone, [one], step=0, before=known, batch_size=1)
        return answers

    fast, slow = timed(lambda: both(64), repeats), timed(from_pixels, 1)
    a, b = both(64), from_pixels()
    logs = [
        (x, y)
        for m, n in zip(a, b, strict=True)
        for x, y in zip(
            m.reference.logprobs if m.reference else (),
            n.reference.logprobs if n.reference else (),
            strict=True,
        )
    ]
    return {
        "cases": len(cases),
        "probes": len(asked),
        "probes_per_s": 2 * len(asked) / fast,
        "batch1_probes_per_s": 2 * len(asked) / slow,
        "ratio": slow / fast,
        "equal_answers": sum(m.ids == n.ids for m, n in zip(a, b, strict=True)) / len(a),
        "max_relative_difference": max(abs(x - y) / max(abs(y), 1.0) for x, y in logs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="micro-vlm only, one repeat")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = cases_of(16)
    edits = [c.edit for c in cases]
    backbones: list[Callable[[], HfVlm]] = [lambda: errata.load("micro-vlm")]  # type: ignore[list-item,return-value]
    if not args.quick:
        backbones += [lambda: random_llava(64), lambda: random_llava(576)]
    results: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    for make in backbones:
        backbone = make()
        small = backbone.name == "micro-vlm"
        repeats = 3 if small and not args.quick else 1
        asked = cases if small else cases[: 4 if "576" not in backbone.name else 1]
        found = results[backbone.name] = {}
        for name, measure in (
            ("asking", lambda b=backbone, r=repeats, a=asked: asking(b, a, r)),
            (
                "resuming",
                lambda b=backbone, r=repeats, s=small: resuming(b, edits[: 16 if s else 4], r),
            ),
            (
                "finding",
                lambda b=backbone, r=repeats, s=small: [
                    finding(b, edits if s else edits[:8], e, 10 if s else 3, r)
                    for e in ("ft_l", "tpatcher")
                ],
            ),
        ):
            found[name] = measure()
            print(backbone.name, name, json.dumps(found[name]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
