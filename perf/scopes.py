"""What a question costs with 1, 100 and 10,000 edits in one memory behind a scope.

    python perf/scopes.py [EDITS ...]      prints seconds per question, and the ratio to the first

The memory is filled with copies of one edit's correction and with random keys of the right form, so
that nothing is searched. Two questions are timed: one that belongs to no edit, and one that belongs
to the first. The median of some repetitions, on micro-vlm; a small model shows the cost of the
match best, since everything else is cheap.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace

import torch

import errata
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.registry import load
from errata.patches.route import Route

REPEAT = 15


def main() -> None:
    sizes = [int(a) for a in sys.argv[1:]] or [1, 100, 10_000]
    backbone = errata.load("micro-vlm")
    spec = BenchmarkSpec.parse("microworld:vqa@dev")
    case = load("benchmarks", spec.name)().load(spec).cases[0]
    edit = backbone.hashed(case.edit)
    outside = next(p.prompt for p in case.probes if p.kind == "m_locality")
    correction = errata.editor("ft_l", scope="lookup").edit(backbone, edit).patch.corrections[0]
    print(f"{'scope':14} {'edits':>7} {'outside':>10} {'inside':>10}   ratio to {sizes[0]}")
    for scope in (
        errata.scope("lookup"),
        errata.scope("knn", layer=4, threshold=0.99999),
        errata.scope("knn", layer=6, threshold=0.99999),
    ):
        key = scope.keys(backbone, [edit])
        first: list[float] = []
        for count in sizes:
            rng = torch.Generator().manual_seed(0)
            if key.is_floating_point():
                noise = torch.randn(count - 1, key.shape[1], generator=rng)
                others = torch.nn.functional.normalize(noise, dim=-1)
            else:
                others = torch.randint(1, 2**62, (count - 1, key.shape[1]), generator=rng)
            patch = Route(scope, torch.cat([key, others]), [correction] * count)
            edits = [edit, *(replace(edit, id=str(i)) for i in range(1, count))]
            patch = patch.requires_grad_(False).with_header(patch.header, edits)
            with backbone.applied(backbone.place(patch)):
                seconds = [timed(backbone, prompt) for prompt in (outside, edit.prompt)]
            first = first or seconds
            ratios = [s / f for s, f in zip(seconds, first, strict=True)]
            name = scope.name + (f" at {scope.config.layer}" if scope.site else "")
            print(
                f"{name:14} {count:7d} {seconds[0]:9.4f}s {seconds[1]:9.4f}s   "
                + " ".join(f"{r:.2f}" for r in ratios),
                flush=True,
            )


def timed(backbone: errata.Backbone, prompt: errata.Prompt) -> float:
    """Median seconds of one question with its next answer token."""
    batch = backbone.encode([prompt], rows=[0])
    rows = torch.zeros(1, dtype=torch.long)
    runs = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        with torch.no_grad():
            backbone.logits(batch, rows=rows)
        runs.append(time.perf_counter() - started)
    return statistics.median(runs)


if __name__ == "__main__":
    main()
