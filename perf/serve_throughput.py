"""Questions with several patches through one model, against one copy of the model per patch.

    python perf/serve_throughput.py [--patches 4] [--clients 32] [--questions 256] [--repeats 5]

Both sides answer the same questions, as many at the same time, with the server's own engine and
without a network. One model: all patches in one batch, one row each. Copies: an engine per patch,
each with its own model, all at work at once; their clients are divided among them. CPU seconds of
the process are compared, since the wall clock of a shared machine measures its other users. The two
sides take turns; the median of the ratios is printed, with its range.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

import errata
from errata import Edit, Prompt
from errata.core.patch import Patch
from errata.serve.decoding.engine import Engine, EngineWatch
from errata.serve.decoding.jobs import AskJob, Event, Finished, Job
from errata.serve.failures import Refused
from errata.serve.settings import Limits

SCENE = "microworld:shape={},colour=blue,pattern=striped,accent=black,size=small,position=centre"
TARGETS = ("purple", "red", "green", "white", "cyan", "pink", "orange", "yellow")
#: long answers: most of the work is decoding, as with a real model
TEXTS = ("Where is the thing in the picture?", "What colour is the ring?", "Who made the ring?")


class Closed:
    """Clients that ask one question after the other: `width` at the same time."""

    def __init__(self, bb: Any, width: int, *, share_unedited: bool = False) -> None:
        self.bb, self.width, self.rows = bb, width, list[int]()
        self.left: list[AskJob] = []
        self.answers: dict[int, str] = {}
        self.done = threading.Event()
        watch = EngineWatch(self.rows.append, _raise)
        limits = Limits(queue=10_000, batch=width)
        self.engine = Engine(bb, limits, self.post, watch, share_unedited=share_unedited)
        self.engine.start()

    def post(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            assert not isinstance(event, Refused), event.message
            if isinstance(event, Finished):
                self.answers[job.number] = event.text
                self._next()

    def _next(self) -> None:
        if self.left:
            self.engine.submit(self.left.pop())
        elif len(self.answers) == self.wanted:
            self.done.set()

    def begin(self, jobs: Sequence[AskJob]) -> None:
        self.left, self.wanted = list(jobs), len(jobs)
        self.answers, self.done = {}, threading.Event()
        self.rows.clear()
        for _ in range(min(self.width, len(jobs))):
            self._next()


def _raise(error: BaseException) -> None:
    raise error


def prompts() -> list[Prompt]:
    shapes = ("ring", "cross", "disc", "square")
    return [
        Prompt.of(text, f"{SCENE.format(shape)},background=grey,seed={i}")
        for i, shape in enumerate(shapes)
        for text in TEXTS
    ]


def made(bb: Any, count: int) -> list[Patch]:
    asked = Prompt.of(TEXTS[1], f"{SCENE.format('ring')},background=grey,seed=0")
    editor = errata.editor("ft_l").for_backbone(bb)
    return [editor.edit(bb, [Edit(asked, t)]).patch for t in TARGETS[:count]]


def seconds(sides: Sequence[Closed], jobs: Sequence[Sequence[AskJob]]) -> tuple[float, float]:
    """CPU and wall seconds until all are answered."""
    cpu, wall = time.process_time(), time.monotonic()
    for side, own in zip(sides, jobs, strict=True):
        side.begin(own)
    for side in sides:
        side.done.wait()
    return time.process_time() - cpu, time.monotonic() - wall


def main() -> None:
    options = argparse.ArgumentParser()
    for name, value in (("patches", 4), ("clients", 32), ("questions", 256), ("repeats", 5)):
        options.add_argument(f"--{name}", type=int, default=value)
    given = options.parse_args()
    torch.set_num_threads(1)
    bb = errata.load("micro-vlm")
    patches = made(bb, given.patches)
    asked = prompts()
    one = Closed(bb, given.clients)
    copies = []
    for _ in patches:
        model = copy.deepcopy(bb.model)
        other = errata.wrap(model, copy.deepcopy(bb.processor), name=bb.name, style=bb.style)
        copies.append(Closed(other, given.clients // len(patches)))

    def jobs() -> list[AskJob]:
        return [
            AskJob(patch=patches[i % len(patches)], prompt=asked[i // 4 % len(asked)], tokens=32)
            for i in range(given.questions)
        ]

    ratios, speeds = [], []
    for repeat in range(given.repeats + 1):
        mixed = jobs()
        apart = jobs()
        divided = [[j for j in apart if j.patch is p] for p in patches]
        cpu_one, _ = seconds([one], [mixed])
        cpu_copies, _ = seconds(copies, divided)
        said = [one.answers[j.number] for j in mixed]
        other_said = {n: a for side in copies for n, a in side.answers.items()}
        assert said == [other_said[j.number] for j in apart], "the two sides answer differently"
        if repeat:  # the first one warms up
            ratios.append(cpu_copies / cpu_one)
            speeds.append((given.questions / cpu_one, given.questions / cpu_copies))
    weights = sum(p.numel() * p.element_size() for p in bb.model.parameters())
    extra = sum(t.numel() * t.element_size() for p in patches for t in p.parameters())
    fast, slow = (statistics.median(s) for s in zip(*speeds, strict=True))
    print(f"{given.questions} questions, {given.patches} patches, {given.clients} clients")
    print(f"rows per forward: one model {statistics.mean(one.rows):.1f}, copies "
          f"{statistics.mean(r for c in copies for r in c.rows):.1f}")  # fmt: skip
    print(f"answers per CPU second: one model {fast:.1f}, copies {slow:.1f}")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
          f"{len(ratios)} repeats)")  # fmt: skip
    print(f"weights and patches: one model {(weights + extra) / 2**20:.1f} MiB, copies "
          f"{(weights * len(patches) + extra) / 2**20:.1f} MiB")  # fmt: skip
    for side in (one, *copies):
        side.engine.close()


if __name__ == "__main__":
    main()
