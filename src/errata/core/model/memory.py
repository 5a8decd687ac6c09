"""The peak memory of a piece of work, not of everything that the process did before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

EVERY = 0.01  # seconds between two samples
STATM = Path("/proc/self/statm")


@dataclass
class Peak:
    """mb: the largest memory in use during the work, in MB; None where it cannot be measured.

    Memory that was in use before, such as the model's weights, is part of it.
    """

    mb: float | None = None


@contextmanager
def measured_peak() -> Iterator[Peak]:
    """Measures the peak memory of what runs inside, when it ends.

    With a GPU it is what torch allocated on all GPUs, at most. Without one it is the resident
    memory of the process, sampled every 10 ms; None where the system has no /proc.
    """
    peak = Peak()
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.mb = sum(torch.cuda.max_memory_allocated(d) for d in devices) / 2**20
        return
    if not STATM.exists():
        yield peak
        return
    ended = threading.Event()
    highest = [resident_mb()]

    def sample() -> None:
        while not ended.wait(EVERY):
            highest.append(max(highest.pop(), resident_mb()))

    thread = threading.Thread(target=sample, daemon=True, name="errata-memory")
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.mb = max(*highest, resident_mb())


def resident_mb() -> float:
    """The resident memory of this process, in MB."""
    pages = int(STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def allocated_peak() -> Iterator[Peak]:
    """The most memory of tensors made inside that lived at once, beyond those from before.

    What torch gave out: on a CPU without a library's work space and without freed blocks that the
    process keeps. A run takes longer inside.
    """
    peak = Peak()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as seen:
        yield peak
    results: Any = seen.profiler.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    peak.mb = max(accumulate((size for _, size in events), initial=0)) / 2**20
