"""Speed of the value search of MEMIT: batches of edits from cached states against a plain loop.

    OMP_NUM_THREADS=1 python perf/value_search.py [--edits 8] [--steps 25] [--out F.json]

A random Llama of 12 blocks, d = 768, 32000 tokens (the text part of a random LLaVA), z at the
output of block 7, six context templates and one KL prompt per edit, no early stop. `errata`: the
search of `errata.algorithms.locate_then_edit.value_search`, as memit calls it. `plain`: the loop of
the published code, one edit after the other, its seven prompts through the whole model at every
step, logits at every position, torch's Adam. Both must give the same vectors. Times are CPU seconds
of this process, one thread. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import errata
from errata.algorithms.locate_then_edit.context_templates import context_templates, with_template
from errata.algorithms.locate_then_edit.value_search import ValueSettings, search
from errata.backbones.hf_vlm import HfVlm
from errata.core.types import Edit, Prompt

LAYER, BLOCKS, WIDTH, VOCABULARY = 7, 12, 768, 32000
NAMES = ("Zorvex", "Mirabel", "Tantor", "Quillon", "Brask", "Ondine", "Feldar", "Umber")
ASKED = ("The colour of {} is", "The home of {} is", "What is the maker of {}?", "{} has the shape")


def model() -> HfVlm:
    """Random weights in the usual classes; the vision tower is small and unused."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    micro = errata.load("micro-vlm")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
            image_size=40, patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2048,
            num_hidden_layers=BLOCKS, num_attention_heads=12, max_position_embeddings=1024,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        image_token_index=micro.image_id,  # type: ignore[attr-defined]
        image_seq_length=25,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    made: Any = LlavaForConditionalGeneration(config)
    return HfVlm(made, micro.processor, name="random-llama-12")  # type: ignore[attr-defined]


def edits(count: int) -> list[Edit]:
    made = []
    for i in range(count):
        name, text = NAMES[i % len(NAMES)], ASKED[i // len(NAMES) % len(ASKED)]
        target = NAMES[(i + 3) % len(NAMES)]
        made.append(Edit(Prompt.of(text.format(name)), target, name, id=str(i)))
    return made


def plain(
    bb: Any,
    edit: Edit,
    starts: Sequence[str],
    settings: ValueSettings,
    modules: Sequence[torch.nn.Module] = (),
) -> Tensor:
    """The vector of one edit at the output of the first module, as the published loop finds it.

    modules: to whose outputs a vector is added; default: the block of this script.
    """
    subject, steps = str(edit.subject), settings.steps
    modules = modules or [bb.blocks[LAYER]]
    prompts = [with_template(edit.prompt, s) for s in starts]
    kl_prompt = Prompt.of(settings.kl_prompt.replace("{}", subject))
    target = bb.answer_ids(edit.target, edit.prompt)
    rows = [[*bb.encode([p]).ids[0].tolist(), *target[:-1]] for p in prompts]
    rows.append(bb.encode([kl_prompt]).ids[0].tolist())
    where = torch.tensor([bb.last_column(p, subject) for p in [*prompts, kl_prompt]])
    ids, mask, last = padded(rows)
    each = torch.arange(len(rows))
    deltas = [torch.zeros(bb.width, requires_grad=True) for _ in modules]
    rate = 0.1 if settings.lr == "auto" else settings.lr
    adam = torch.optim.Adam(deltas, lr=rate)
    seen: list[list[Tensor]] = [[] for _ in modules]

    def adder(delta: Tensor, kept: list[Tensor]) -> Any:
        def add(_: Any, args: Any, out: Any) -> Any:
            y = out[0] if isinstance(out, tuple) else out
            kept.append(y[0, where[0]].detach())
            moved = y.index_put((each, where), y[each, where] + delta)
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        return add

    handles = [
        m.register_forward_hook(adder(d, k)) for m, d, k in zip(modules, deltas, seen, strict=True)
    ]
    wanted = torch.tensor(target)
    columns = last[:-1, None] - len(target) + torch.arange(len(target))
    before: Tensor | None = None
    try:
        for step in range(steps):
            logp = bb.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
            now = logp[-1, where[-1]]
            before = now.detach() if before is None else before
            said = logp[each[:-1, None], columns].gather(
                -1, wanted.expand(len(starts), -1)[..., None]
            )
            loss = -said.mean() + settings.kl_factor * (now.exp() * (now - before)).sum()
            for delta, kept in zip(deltas, seen, strict=True):
                loss = loss + settings.weight_decay * delta.norm() / kept[0].norm() ** 2
            if step == steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                for delta, kept in zip(deltas, seen, strict=True):
                    limit = settings.clamp * kept[0].norm()
                    delta *= (limit / delta.norm().clamp(min=1e-30)).clamp(max=1.0)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0][0] + deltas[0].detach()


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, T], mask [B, T], lengths [B])"""
    lengths = torch.tensor([len(r) for r in rows])
    longest = int(lengths.max())
    ids = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows])
    return ids, (torch.arange(longest) < lengths[:, None]).long(), lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bb, wanted = model(), edits(args.edits)
    starts = context_templates(bb, "sampled", (10,), torch.Generator().manual_seed(0))
    settings = ValueSettings(
        sites=(f"text.{LAYER + 1}.in",), lr=0.1, steps=args.steps, clamp=4.0, weight_decay=0.5,
        stop_loss=0.0, eos=False,
    )  # fmt: skip
    search(bb, list(enumerate(wanted[:1])), starts, settings)  # warm
    began = time.process_time()
    found = search(bb, list(enumerate(wanted)), starts, settings).value[settings.sites[0]]
    fast = time.process_time() - began
    began = time.process_time()
    slow_found = torch.stack([plain(bb, e, starts, settings) for e in wanted])
    slow = time.process_time() - began
    result = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "edits": args.edits,
        "steps": args.steps, "rows_per_edit": len(starts) + 1, "layer": LAYER, "blocks": BLOCKS,
        "width": WIDTH, "vocabulary": VOCABULARY, "plain_s_per_edit": slow / args.edits,
        "rows_s_per_edit": fast / args.edits, "ratio": slow / fast,
        "max_relative_difference": float(
            (found - slow_found).abs().max() / slow_found.abs().max()
        ),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
