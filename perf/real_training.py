"""Time and memory of a training step of `dualedit` and `mend` on models of real shapes.

    OMP_NUM_THREADS=1 python perf/real_training.py --shape llava-1.5-7b --editor mend
        [--depth 4] [--above 3] [--accumulate 1] [--dtype bfloat16] [--device cuda] [--steps 4]
        [--out mend.json]

Weights are random. `--depth` cuts the text model. `mend` changes the last three blocks, so a cut
model costs as much as the whole one. `dualedit` trains through every block above its textual
adapter (15 of 32 in the paper), so give `--above` twice and take the difference per block. Steps
are warm: the hidden states below the adapters are computed once per question and cached.

Memory: the model's weights; what the process (or the accelerator) holds after loading, relative to
the weights, which is the number of copies; and the peak that training adds. On a CPU, seconds are
CPU seconds of this process; on an accelerator, seconds of the clock.
Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_models import SHAPES, random_model
from real_shapes import resident
from speed import cases_of

from errata.core import registry
from errata.core.model.backbone import Backbone
from errata.core.state import PrepareContext
from errata.training.loop import train

COMMON = {
    "held_out": 0, "generality_examples": 2, "generality_pool": 2, "locality_examples": 1,
    "locality_pool": 1, "locality_kinds": ("m_locality",), "eval_steps": 10**6, "save_steps": 10**6,
}  # fmt: skip


def settings(editor: str, above: int, batch: int) -> dict[str, Any]:
    """The paper's preset with `above` blocks behind the lowest place that training enters."""
    if editor == "mend":
        return {"layers": tuple(range(-above, 0))}
    return {"text_layer": -above - 1, "visual_layer": -max(above - 2, 2), "batch_size": batch}


def held(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    return resident()["anon"]


@contextmanager
def peak(device: str, told: dict[str, Any]) -> Iterator[None]:
    """Bytes that are added inside, at the highest."""
    before = held(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield
        told["peak_added"] = torch.cuda.max_memory_allocated() - before
        return
    highest, stop = [before], threading.Event()

    def sample() -> None:
        while not stop.wait(0.005):
            highest[0] = max(highest[0], resident()["anon"])

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        stop.set()
        sampler.join()
    told["peak_added"] = highest[0] - before


def step_seconds(
    backbone: Backbone, name: str, args: argparse.Namespace, above: int
) -> dict[str, Any]:
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    own = {**COMMON, **settings(name, above, args.batch)}
    if args.accumulate:
        own["gradient_accumulation_steps"] = args.accumulate
    batch = int(own.get("batch_size", 1))
    editor = registry.load("editors", name)(preset="paper", **own, steps=1 + args.steps)
    cases = [c for c in cases_of(64) if {p.kind for p in c.probes} >= {"m_generality"}][:batch]
    ticks: list[float] = []

    def tick(what: str, done: int, total: int) -> None:
        held(args.device)
        ticks.append(clock())

    accumulate = editor.config.gradient_accumulation_steps
    told: dict[str, Any] = {"above": above, "batch": batch, "accumulate": accumulate}
    with peak(args.device, told):
        trainee = editor.trainee(backbone, cases, 0)
        told["trained_numbers"] = sum(p.numel() for p in trainee.module.parameters())
        train(backbone, cases, trainee, seed=0, work=PrepareContext(None, tick))
    told["step_s"] = round(median(b - a for a, b in pairwise(ticks)), 3)
    return told


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--editor", choices=("dualedit", "mend"), required=True)
    parser.add_argument("--above", type=int, nargs="+", default=[3])
    parser.add_argument("--depth", type=int, help="text blocks (default: all)")
    parser.add_argument("--vision", type=int, help="blocks of the vision model (default: all)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, help="forwards per update (default: the paper's)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    shape = SHAPES[args.shape]
    start = held(args.device)
    depth = args.depth or shape.depth
    backbone = random_model(args.shape, depth, args.vision, args.dtype, args.device)
    # a checkpoint's files are hashed once, not timed here
    backbone.fingerprint = lambda: backbone.name
    weights = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    told: dict[str, Any] = {
        "shape": asdict(shape), "depth": depth, "dtype": args.dtype,
        "device": args.device, "torch": torch.__version__, "editor": args.editor,
        "weights": weights, "copies_before": round((held(args.device) - start) / weights, 3),
    }  # fmt: skip
    told["runs"] = [step_seconds(backbone, args.editor, args, above) for above in args.above]
    told["copies_after"] = round((held(args.device) - start) / weights, 3)
    print(json.dumps(told), flush=True)
    if args.out:
        args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
