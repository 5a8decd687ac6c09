"""Number formats that a processor has no instructions for.

A CPU without instructions for bfloat16 multiplies matrices in it 10 to 100 times slower than in
float32, although float32 holds the same numbers. `load` measures both once, on a small product.
"""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch

from errata.core.errors import Notice
from errata.core.model.backbone import Backbone

SIDE = 192  # of the two matrices: some milliseconds where it is slow
SLOW = 6.0  # times the seconds of float32
LARGE = 20_000_000  # numbers of a model that is worth a word


def warn_of_slow_dtype(backbone: Backbone) -> None:
    """One line for a model on the CPU in a format that is slow there, unless it is small."""
    dtype = backbone.dtype
    if dtype.itemsize >= 4 or backbone.device_of("").type != "cpu":
        return
    if sum(p.numel() for p in backbone.model.parameters()) < LARGE:
        return
    times = slowness(dtype)
    if times >= SLOW:
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this processor multiplies {name} matrices {times:.0f} times slower than float32. "
            f"{backbone.name} is loaded in {name}; with --dtype float32 it takes twice the memory "
            "and is faster.",
            Notice,
            stacklevel=4,
        )


@cache
def slowness(dtype: torch.dtype) -> float:
    """Seconds of a product of matrices on the CPU in this format, as a multiple of float32's."""
    return _seconds(dtype) / max(_seconds(torch.float32), 1e-9)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of three, after one that is not counted."""
    one = torch.ones(SIDE, SIDE, dtype=dtype)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        one @ one
        taken.append(time.perf_counter() - start)
    return min(taken[1:])
