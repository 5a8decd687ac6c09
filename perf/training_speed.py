"""Training speed of `dualedit`, `visedit` and `mend`, against a plain loop.

    OMP_NUM_THREADS=1 python perf/training_speed.py [--editors dualedit visedit mend]
        [--steps 6] [--cases 16] [--shares] [--out speed.json]

A random LLaVA of 12 blocks, d = 512, 64 image tokens, batches of 4 cases, adapters of width 1024 at
the papers' relative depth. A sample is one case: its edit, a rephrased question, a re-rendered
picture, a locality question. Seconds are CPU seconds of this process, so that other jobs do not
count. The result is samples per second of

`cold`: cases of the first epoch, from pixels. `warm`: cached hidden states below the first trained
block, as in every later epoch. `plain`: the order of work of the published loops, on the same warm
states: a forward for each of the sample's questions, one for the edit's trace, one for the locality
question before the edit, and the noise targets of the influence mapper anew in every step, from a
batch of as many rows as there are noises. DualEdit's code makes these targets too and does not use
them (`without targets`: the same loop without them). `plain_cold`: the same, with the states made
from pixels first, question by question. `states`: the states of `cold` alone, without any training:
with them and nothing else, `cold` could reach `ceiling` times `plain_cold`. `--shares`: warm steps
also without parts of `errata.backbones._pruning`: without `rows`, the picture of every question is
computed separately; without `columns`, all positions of the last block are. `gflops`: of a matrix
product as large as a block's FFN, for the speed of the machine. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed import cases_of, random_llava
from torch import Tensor

from errata.algorithms.attribution import NoiseTrace
from errata.algorithms.gated_adapter import AdapterEditor, AdapterTrainee
from errata.backbones import _forward, _prefixes
from errata.core import registry
from errata.core.hooks.context import HookContext
from errata.core.model.backbone import Backbone
from errata.core.model.batch import PrefixState
from errata.core.model.recorder import outputs_at, run_until_enough
from errata.core.state import PrepareContext
from errata.core.types import Case
from errata.networks.edit_bank import EditBank
from errata.patches.adapter import Adapter
from errata.training.batches import ExamplePool, TrainExample
from errata.training.loop import Trainee, train
from errata.training.optimise import generator, target_loss

BATCH, TOKENS, NOISED = 4, 24, (8, 9, 10, 11)
COMMON = {
    "batch_size": BATCH, "held_out": 0, "generality_examples": 2, "generality_pool": 2,
    "locality_examples": 1, "locality_pool": 1, "locality_kinds": ("m_locality",), "warmup": 0,
    "eval_steps": 10**6,
}  # fmt: skip
ADAPTER = {"mid": 1024, "heads": 8, "marks": 0, "lr": 1e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "dualedit": {**COMMON, **ADAPTER, "text_layer": 6, "visual_layer": 7},
    "visedit": {**COMMON, **ADAPTER, "layer": 6, "noise_layers": NOISED, "tokens": TOKENS},
    "mend": {**COMMON, "layers": (9, 10, 11), "rank": 512},
}


OFF: tuple[tuple[str, ...], ...] = ((), ("rows",), ("columns",), ("rows", "columns"))


def ours(
    backbone: Backbone, editor: Any, cases: Sequence[Case], steps: int, shares: bool
) -> dict[str, float]:
    """Samples per second in the first epoch and in the later ones, there in turn as in `OFF`."""
    epoch, modes = len(cases) // BATCH, OFF if shares else OFF[:1]
    ticks = [time.process_time()]
    whole = _prefixes.identical_columns, _forward.last_block_at

    def tick(what: str, done: int, total: int) -> None:
        ticks.append(time.process_time())
        off = modes[max(0, done - epoch) % len(modes)]
        _prefixes.identical_columns = (lambda *_: None) if "rows" in off else whole[0]
        _forward.last_block_at = (lambda *_: nullcontext()) if "columns" in off else whole[1]

    config = type(editor)(**{**editor.passed, "steps": epoch + steps * len(modes)})
    trainee: Trainee = config.trainee(backbone, cases, 0)
    try:
        train(backbone, cases, trainee, seed=0, work=PrepareContext(None, tick))
    finally:
        _prefixes.identical_columns, _forward.last_block_at = whole
    each = [b - a for a, b in pairwise(ticks)]
    found = {"cold": BATCH / median(each[1:epoch])}
    for n, off in enumerate(modes):
        name = "_".join(("warm", *(f"without_{o}" for o in off)))
        found[name] = BATCH / median(each[epoch + n :: len(modes)])
    return found


class PlainNoise(NoiseTrace):
    """All rows run through the whole model; each module's noise goes no further."""

    def before(self, site: str, x: Tensor, ctx: HookContext) -> Tensor:
        return super().before(site, x[:1], ctx)

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        return super().at(site, x, y, ctx).expand_as(y)


class Plain:
    """The published loop's order of work, with this library's adapters and cached states."""

    def __init__(self, backbone: Backbone, editor: AdapterEditor, cases: Sequence[Case]) -> None:
        trainee = editor.trainee(backbone, cases, 0)
        assert isinstance(trainee, AdapterTrainee)
        self.backbone, self.trainee, self.floor = backbone, trainee, int(trainee.floor or 0)
        pools = [trainee.rows(c, generator(0, "pool", c.id)) for c in cases]
        self.rows = [[p[k] for p in pools] for k in range(4)]  # rel, 2 gen, loc
        self.enter()
        self.alone = [self._entered([p[0]] * (1 + TOKENS)) for p in pools]
        self.adam = torch.optim.Adam(trainee.module.parameters(), lr=1e-4)

    def _entered(self, rows: Sequence[TrainExample]) -> PrefixState:
        batch = self.backbone.encode(
            [r.prompt for r in rows], [r.target for r in rows], eos=True, rows=range(len(rows))
        )
        return self.backbone.enter(batch, self.floor, rows=torch.arange(len(rows)))

    def targets(self) -> None:
        for alone in self.alone:
            columns = alone.batch.vision[0].nonzero()[:TOKENS]
            last = int(alone.batch.lengths[0]) - 1
            sites = [f"text.{i}.attn" for i in NOISED]
            noise = PlainNoise(sites, columns, last, 0.7, torch.Generator().manual_seed(0))
            run_until_enough(self.backbone, alone, noise)

    def enter(self) -> None:
        """The states of all questions again, one after the other, from pixels."""
        self.parts = [self._entered(rows) for rows in self.rows]

    def step(self, *, targets: bool) -> None:
        bb, module = self.backbone, self.trainee.module
        rel, loc = self.parts[0], self.parts[3]
        if targets:
            self.targets()
        with torch.no_grad():
            before = bb.logits(loc).log_softmax(-1)
            bb.logits(rel)  # the trace runs to the model's end
            sites, gate = [p.site for p in module.places], self.trainee.gate
            outputs = outputs_at(bb, rel, [*dict.fromkeys(sites), gate.site])
        bank = EditBank.of(sites, gate, rel.batch, outputs, eos=True)
        patch = Adapter(module, bank, gate, rows=len(self.alone))
        with bb.applied(patch), torch.enable_grad():
            loss = sum(target_loss(bb.logits(p), p.batch)[0].mean() for p in self.parts[:3])
            now = bb.logits(loc).log_softmax(-1)
            loss = loss + (before.exp() * (before - now)).sum(-1).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


def plain(
    backbone: Backbone, editor: AdapterEditor, cases: Sequence[Case], steps: int, targets: bool
) -> tuple[float, float]:
    """Samples per second on states that are kept, and from pixels."""
    loop, warm, cold = Plain(backbone, editor, cases[:BATCH]), [], []
    for _ in range(steps + 1):
        started = time.process_time()
        loop.enter()
        entered = time.process_time()
        loop.step(targets=targets)
        warm.append(time.process_time() - entered)
        cold.append(time.process_time() - started)
    return BATCH / median(warm[1:]), BATCH / median(cold[1:])


def states(backbone: Backbone, editor: AdapterEditor, cases: Sequence[Case]) -> float:
    """Samples per second of the states of a first epoch alone."""
    trainee, each = editor.trainee(backbone, cases, 0), []
    assert isinstance(trainee, AdapterTrainee)
    pool = ExamplePool(
        backbone, lambda case: trainee.rows(case, generator(0, "pool", case.id)),
        floor=trainee.floor, eos=True, limit=2**33,
    )  # fmt: skip
    for case in cases:
        began = time.process_time()
        pool.of(case)
        each.append(time.process_time() - began)
    return 1 / median(each[1:])


def gflops() -> float:
    """Of one thread, on a product of the size of a block's FFN."""
    x, w = torch.randn(1024, 512), torch.randn(512, 1376)
    started = time.process_time()
    for _ in range(100):
        x @ w
    return 2e-7 * 1024 * 512 * 1376 / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editors", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = random_llava(64)
    cases = [c for c in cases_of(64) if {p.kind for p in c.probes} >= {"m_generality"}][
        : args.cases
    ]
    found: dict[str, Any] = {"gflops": round(gflops(), 1)}
    for name in args.editors:
        editor = registry.load("editors", name)(**SETTINGS[name])
        row = ours(backbone, editor, cases, args.steps, args.shares)
        if isinstance(editor, AdapterEditor):
            row["states"] = states(backbone, editor, cases)
            row["plain"], row["plain_cold"] = plain(backbone, editor, cases, args.steps, True)
            without = plain(backbone, editor, cases, args.steps, False)
            row["plain_without_targets"], row["plain_cold_without_targets"] = without
            row["ratio"] = row["warm"] / row["plain"]
            row["cold_ratio"] = row["cold"] / row["plain_cold"]
            row["ceiling"] = row["states"] / row["plain_cold"]
        found[name] = {k: round(v, 2) for k, v in row.items()}
        print(name, json.dumps(found[name]), flush=True)
    found["gflops_after"] = round(gflops(), 1)
    print(found["gflops"], found["gflops_after"], "GFLOP/s")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
