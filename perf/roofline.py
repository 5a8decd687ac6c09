"""Every phase as a share of the matrix-product peak of one CPU thread, or of a device.

    OMP_NUM_THREADS=1 python perf/roofline.py [--device cuda --dtype bfloat16] [--profile] [--out F]

A random LLaVA of 12 blocks, d = 512. Phases: `search`, the value search of memit (8 edits, seven
rows each); `probes`, five questions about one picture of 576 tokens, as `errata bench` asks them;
`training`, warm steps of dualedit (4 cases of 64 image tokens). `peak`: the best of products of the
sizes that a block's FFN has, and of square ones, measured before and after each phase. Floating
point operations are counted by torch (`FlopCounterMode`) in a run of their own, as products alone:
what is computed, not what a plain loop would. `--profile` names the operations that take the time.

On a CPU seconds are CPU seconds of this process, on a device seconds of the clock between two
synchronisations. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from asking import requests_of
from speed import cases_of, random_llava
from torch.utils.flop_counter import FlopCounterMode
from training_speed import BATCH, SETTINGS
from value_search import edits

from errata.algorithms.locate_then_edit.context_templates import context_templates
from errata.algorithms.locate_then_edit.value_search import ValueSettings, search
from errata.core import registry
from errata.core.state import PrepareContext
from errata.evaluation.answers import ask_all
from errata.training.loop import train

#: products [m, k] @ [k, n]: a block's FFN over some hundred columns, and squares
SIZES = ((512, 512, 1376), (1024, 512, 1376), (1024, 1376, 512), (1024, 1024, 1024))
LARGE = ((4096, 4096, 4096), (8192, 8192, 8192))


class Meter:
    """Seconds and products on a device."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device(device), dtype

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, run: Callable[[], Any]) -> float:
        began = self.now()
        run()
        return self.now() - began

    def peak(self) -> float:
        """Operations per second of the best product."""
        best = 0.0
        on_cpu = self.device.type == "cpu"
        for m, k, n in SIZES if on_cpu else (*SIZES, *LARGE):
            x = torch.randn(m, k, device=self.device, dtype=self.dtype)
            w = torch.randn(k, n, device=self.device, dtype=self.dtype)
            turns = 10 if on_cpu else 100

            def run(x: torch.Tensor = x, w: torch.Tensor = w, turns: int = turns) -> None:
                for _ in range(turns):
                    x @ w

            run()
            best = max(best, *(2 * m * k * n * turns / self.seconds(run) for _ in range(3)))
        return best


@dataclass(frozen=True)
class Phase:
    """What is measured, and what of it does not count: the same run with a shorter ending."""

    run: Callable[[], Any]
    start: Callable[[], Any] = lambda: None


def measured(meter: Meter, name: str, phase: Phase, profile: bool) -> dict[str, Any]:
    """A phase: its operations, its seconds, and the peak around it."""
    run = phase.run
    run()  # warm
    flops = products(run) - products(phase.start)
    before = meter.peak()
    seconds = min(meter.seconds(run) - meter.seconds(phase.start) for _ in range(2))
    peak = max(before, meter.peak())
    told: dict[str, Any] = {
        "phase": name, "gflop": flops / 1e9, "s": seconds, "gflop_per_s": flops / seconds / 1e9,
        "peak_gflop_per_s": peak / 1e9, "share": flops / seconds / peak,
    }  # fmt: skip
    if profile:
        told["operations"] = operations(run)
    print(json.dumps(told), flush=True)
    return told


def products(run: Callable[[], Any]) -> int:
    """Floating point operations of the products in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def operations(run: Callable[[], Any]) -> dict[str, float]:
    """The share of the time of each operation, the largest ten."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = torch.cuda.is_available()
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        run()
    own = {
        e.key: e.self_device_time_total if cuda else e.self_cpu_time_total
        for e in seen.key_averages()
    }
    total = sum(own.values())
    largest = sorted(own, key=lambda k: -own[k])[:10]
    return {k: round(own[k] / total, 3) for k in largest}


def searching(meter: Meter, steps: int) -> Phase:
    bb = on_device(random_llava(64), meter)
    starts = context_templates(bb, "sampled", (10,), torch.Generator().manual_seed(0))
    settings = ValueSettings(
        sites=("text.4.in",), lr=0.1, steps=steps, clamp=4.0, weight_decay=0.5, stop_loss=0.0,
        eos=False,
    )  # fmt: skip
    wanted = list(enumerate(edits(8)))
    return Phase(lambda: search(bb, wanted, starts, settings))


def asking(meter: Meter) -> Phase:
    bb = on_device(random_llava(576), meter)
    asked, _ = requests_of(1, 5)

    def run() -> None:
        bb.forget()
        ask_all(bb, asked, step=-1)

    return Phase(run)


def training(meter: Meter, steps: int) -> Phase:
    """The steps of a training behind the first one, whose states below the adapter are kept."""
    bb = on_device(random_llava(64), meter)
    cases = [c for c in cases_of(64) if {p.kind for p in c.probes} >= {"m_generality"}][:BATCH]

    def trained(count: int) -> None:
        editor = registry.load("editors", "dualedit")(**{**SETTINGS["dualedit"], "steps": count})
        train(bb, cases, editor.trainee(bb, cases, 0), seed=0, work=PrepareContext())

    return Phase(lambda: trained(1 + steps), lambda: trained(1))


def on_device(bb: Any, meter: Meter) -> Any:
    bb.model.to(meter.device, meter.dtype)
    return bb


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--phases", default="search,probes,training")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    meter = Meter(args.device, getattr(torch, args.dtype))
    phases: dict[str, Callable[[], Phase]] = {
        "search": lambda: searching(meter, args.steps),
        "probes": lambda: asking(meter),
        "training": lambda: training(meter, args.steps),
    }
    rows = [measured(meter, name, phases[name](), args.profile) for name in args.phases.split(",")]
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
