"""Whole edits of rome, memit, alphaedit and pmet against a plain loop in the peers' order of work.

    OMP_NUM_THREADS=1 python perf/whole_edits.py --editor rome [--edits 2] [--steps 20] [--out F]

A random Llama of 8 blocks, d = 512, 32000 tokens; statistics and context templates are made before
and shared. The plain loop does one edit after the other: the search of `value_search.py` (the whole
model over all prompts in every step, logits at every position), then for each layer the keys and
the value by a forward of the whole model each, and a solve with a full matrix in float64. `errata`:
the editor as a user calls it, one edit after the other (`one`) and all in one call (`together`).
Both sides take turns; CPU seconds of this process, the smallest of two. `share`: the products of
the edits made one by one, per second, of the best product of this thread; `ceiling`: the ratio if
they ran as fast as that, and nothing else took time. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from batch_memory import statistics
from roofline import Meter, products
from torch import Tensor
from value_search import edits, padded, plain

import errata
from errata.algorithms.locate_then_edit.context_templates import with_template
from errata.algorithms.locate_then_edit.layer_stats import moment, site_of
from errata.core.types import Edit

SETTINGS: dict[str, dict[str, Any]] = {
    "rome": {"layers": (3,)},
    "memit": {"layers": (1, 2, 3)},
    "alphaedit": {"layers": (1, 2, 3), "threshold": "relative", "nullspace_threshold": 0.5},
    "pmet": {"layers": (1, 2, 3), "write": "ffn"},
}


def model(blocks: int = 8, width: int = 512, ffn: int = 1376, vocabulary: int = 32000) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=blocks,
        num_attention_heads=8, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    micro: Any = errata.load("micro-vlm")
    return errata.wrap(LlamaForCausalLM(config).eval(), micro.tokenizer, name="random-llama-8")


class Plain:
    """The loop of the published code on one model."""

    def __init__(self, bb: Any, editor: Any, state: Any, starts: Sequence[str]) -> None:
        self.bb, self.editor, self.state, self.starts = bb, editor, state, starts
        self.layers: list[int] = editor.layers(bb)
        self.kept = {i: self.solver(moment(state, i).double()) for i in self.layers}

    def solver(self, moment_dd: Tensor) -> Tensor:
        """What the published code keeps of the statistics of a layer."""
        if self.editor.name == "alphaedit":
            values, vectors = torch.linalg.eigh(moment_dd)
            bound = self.editor.config.nullspace_threshold * moment_dd.diagonal().mean()
            small = vectors[:, values < bound]
            return small @ small.T
        ridge = self.editor.config.ridge * float(moment_dd.diagonal().mean())
        smooth = moment_dd + ridge * torch.eye(len(moment_dd), dtype=torch.float64)
        return torch.linalg.inv(smooth) if self.editor.name == "rome" else smooth

    def linear(self, layer: int) -> Any:
        return self.bb.site(site_of(layer)).first

    def searched(self) -> list[torch.nn.Module]:
        top = self.layers[-1]
        if self.editor.name == "rome":
            return [self.linear(top)]
        if self.editor.name == "pmet":
            return [self.linear(top), self.bb.site(f"text.{top}.attn.o").first]
        return [self.bb.blocks[top]]

    @torch.no_grad()
    def read(self, edit: Edit, module: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """(inputs [P, d] behind all templates, output [h] of the bare prompt) of a module, by a
        whole forward each.
        """
        found = []
        for starts in (self.starts, self.starts[:1]):
            prompts = [with_template(edit.prompt, s) for s in starts]
            ids, mask, _ = padded([self.bb.encode([p]).ids[0].tolist() for p in prompts])
            where = [self.bb.last_column(p, str(edit.subject)) for p in prompts]
            seen: list[Any] = []
            handle = module.register_forward_hook(lambda _, x, y, seen=seen: seen.append((x, y)))
            try:
                self.bb.model(input_ids=ids, attention_mask=mask)
            finally:
                handle.remove()
            (x, *_), y = seen[0]
            y = y[0] if isinstance(y, tuple) else y
            at = torch.arange(len(where)), torch.tensor(where)
            found.append((x[at].double(), y[at].double()))
        return found[0][0], found[1][1][0]

    def edit(self, edit: Edit) -> dict[int, Tensor]:
        """The change of each layer's weight; the weights are as before afterwards."""
        bb, name = self.bb, self.editor.name
        settings = self.editor.value_settings(bb, self.layers[-1]) if name != "rome" else (
            self.editor.search_settings([site_of(self.layers[-1])])
        )  # fmt: skip
        modules = self.searched()
        value = plain(bb, edit, self.starts, settings, modules).double()
        weights = {i: self.linear(i).weight for i in self.layers}
        before = {i: w.detach().clone() for i, w in weights.items()}
        try:
            for n, layer in enumerate(self.layers):
                keys, _ = self.read(edit, self.linear(layer))
                _, now = self.read(edit, modules[0])
                left = len(self.layers) - n
                residual = (value - now) / (left**0.5 if name == "pmet" else left)
                with torch.no_grad():
                    weights[layer] += self.update(layer, keys, residual).float()
            return {i: w.detach() - before[i] for i, w in weights.items()}
        finally:
            with torch.no_grad():
                for i, w in weights.items():
                    w.copy_(before[i])

    def update(self, layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        """[h, d] the change of a layer's weight."""
        kept, bare, others = self.kept[layer], keys[0], keys[1:]
        if self.editor.name == "rome":
            u = torch.nn.functional.normalize(kept @ keys.mean(0), dim=0)
            return torch.outer(residual / (bare @ u), u)
        key = (bare + others.mean(0)) / 2 if len(others) else bare
        outer = torch.outer(key, key)
        if self.editor.name == "alphaedit":
            ridge = self.editor.config.L2 * torch.eye(len(key), dtype=torch.float64)
            system = kept @ outer + ridge
            return torch.linalg.solve(system, kept @ torch.outer(key, residual)).T
        return torch.outer(residual, torch.linalg.solve(len(key) * kept + outer, key))


def smallest(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """CPU seconds of each run, the smallest of some turns that they take one after the other."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(turns):
        for name, run in runs.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--editor", choices=list(SETTINGS), required=True)
    parser.add_argument("--edits", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bb, wanted = model(), edits(args.edits)
    editor = errata.editor(
        args.editor, steps=args.steps, stop_loss=0.0, eos=False, lr=0.1, **SETTINGS[args.editor]
    )
    state = statistics(bb, editor.layers(bb))
    loop = Plain(bb, editor, state, editor.templates(bb, 0))
    editor.edit(bb, wanted[:1], state)  # warm: factors and null spaces are made once
    found = smallest(
        {
            "plain": lambda: [loop.edit(e) for e in wanted],
            "one": lambda: [editor.edit(bb, [e], state) for e in wanted],
            "together": lambda: editor.edit_rows(bb, wanted, [state] * len(wanted)),
        },
        args.turns,
    )
    meter = Meter("cpu", torch.float32)
    flops, peak = products(lambda: [editor.edit(bb, [e], state) for e in wanted]), meter.peak()
    result = {
        "editor": args.editor, "edits": args.edits, "steps": args.steps,
        "rows_per_edit": len(loop.starts) + 1,
        **{f"{name}_s_per_edit": s / args.edits for name, s in found.items()},
        "ratio_one": found["plain"] / found["one"],
        "ratio_together": found["plain"] / found["together"],
        "share": flops / found["one"] / peak,
        "ceiling": found["plain"] / (flops / peak),
    }  # fmt: skip
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
