"""How far the queue of a run's units carries: simulated workers, in simulated time.

    python perf/unit_queue.py [--units 1000000] [--workers 1000]

The queue itself is real (`errata.evaluation.distribute.queue`); a worker is an entry in a heap of
the times at which it is done. Units take 30 s to 90 s of simulated time, one worker in 10,000 units
is lost. Prints CSV per number of workers: `us_per_unit`, CPU microseconds of the planning process
per unit; `keeps_busy`, the workers that it could keep busy with units of a minute at that cost;
`idle`, the share of the workers' time without a unit; `most_waiting`, the most results that waited
for an earlier unit; `peak_mb`, its memory above that at the start.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
import tracemalloc

from errata.evaluation.distribute.queue import UnitQueue
from errata.evaluation.distribute.ray_workers import AHEAD

MEAN = 60.0  # seconds of a unit


def simulate(units: int, workers: int) -> tuple[float, float, int]:
    """(CPU seconds, share of the time that workers were idle, most results that waited)."""
    rng, now, most, busy = random.Random(0), 0.0, 0, 0.0
    lengths = [rng.uniform(MEAN / 2, 3 * MEAN / 2) for _ in range(4096)]
    queue: UnitQueue[int, int] = UnitQueue(range(units), AHEAD * workers)
    heap: list[tuple[float, int]] = []
    idle = list(range(workers))
    started = time.process_time()
    while not queue.finished:
        waiting = []
        for worker in idle:
            unit = queue.take(worker)
            if unit is None:
                waiting.append(worker)
            else:
                length = lengths[unit % len(lengths)]
                busy += length
                heapq.heappush(heap, (now + length, worker))
        now, worker = heapq.heappop(heap)
        if rng.random() < 1e-4:
            queue.lost(worker, "lost")
        else:
            queue.done(worker, worker)
            most = max(most, queue.waiting)
        idle = [*waiting, worker]
    return time.process_time() - started, 1 - busy / (now * workers), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 10, 100, 1000])
    args = parser.parse_args()
    print("workers,units,us_per_unit,keeps_busy,idle,most_waiting,peak_mb")
    for workers in args.workers:
        seconds, idle, most = simulate(args.units, workers)
        tracemalloc.start()
        simulate(args.units, workers)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        each = seconds / args.units
        cost = f"{each * 1e6:.1f},{MEAN / each:.0f}"
        print(f"{workers},{args.units},{cost},{idle:.3f},{most},{peak:.1f}", flush=True)


if __name__ == "__main__":
    main()
