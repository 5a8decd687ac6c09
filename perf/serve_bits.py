"""What sharing a forward does to the bits of an unedited answer, and what answering alone costs.

    python -m perf.serve_bits [--questions 48] [--clients 16]

First: the logits of the first and second token of each question, asked alone, against the same
question in a batch: of equal questions, of questions of equal length, and of all lengths (padded);
and alone with an empty row patch. Printed are the share of rows with another bit anywhere, the
largest difference, and how many tokens change. Then: unedited questions per CPU second, each in
forwards of its own and in a shared batch (`--share-unedited`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import errata
from errata import Prompt
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.serve.decoding.jobs import AskJob
from perf.serve_throughput import Closed, seconds

SHAPES = ("ring", "cross", "disc", "square", "triangle", "bowtie")
TEXTS = ("What colour is it?", "What shape is it?", "Where is the thing in the picture?",
         "What is its pattern?")  # fmt: skip


def asked(count: int) -> list[Prompt]:
    scene = "microworld:shape={},colour=blue,pattern=striped,accent=black,size=small"
    return [
        Prompt.of(
            TEXTS[i % len(TEXTS)],
            f"{scene.format(SHAPES[i % len(SHAPES)])},position=centre,background=grey,seed={i}",
        )
        for i in range(count)
    ]


def two_logits(bb: Any, prompts: Sequence[Prompt], seconds: Tensor | None = None) -> Tensor:
    """[B, 2, V] logits of the first token, and of the one behind `seconds` [B] or the likeliest."""
    rows = torch.zeros(len(prompts), dtype=torch.long)
    with torch.no_grad(), bb.ask(bb.encode(prompts, rows=rows.tolist()), rows=rows) as q:
        first = q.logits[:, -1]
        fed = first.argmax(-1) if seconds is None else seconds
        return torch.stack([first, q.feed(fed[:, None])[:, -1]], dim=1)


def compare(
    bb: Any, prompts: Sequence[Prompt], alone: Tensor, batches: Callable[[int], Sequence[int]]
) -> str:
    """batches: index of a question -> the questions of its batch, itself the first."""
    other_bits, most, changed = 0, 0.0, 0
    for i in range(len(prompts)):
        index = batches(i)
        got = two_logits(bb, [prompts[j] for j in index], alone[list(index), 0].argmax(-1))[0]
        other_bits += not torch.equal(got, alone[i])
        most = max(most, float((got - alone[i]).abs().max()))
        changed += int((got.argmax(-1) != alone[i].argmax(-1)).sum())
    n = len(prompts)
    return f"{other_bits}/{n} other bits, at most {most:.1e}, {changed}/{2 * n} tokens change"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--questions", type=int, default=48)
    options.add_argument("--clients", type=int, default=16)
    given = options.parse_args()
    torch.set_num_threads(1)
    bb = errata.load("micro-vlm")
    prompts = asked(given.questions)
    alone = torch.cat([two_logits(bb, [p]) for p in prompts])
    n = len(prompts)
    lengths = [int(bb.encode([p]).lengths[0]) for p in prompts]
    equal = [[j for j in range(n) if lengths[j] == lengths[i] and j != i] for i in range(n)]
    print("again, alone:      ", compare(bb, prompts, alone, lambda i: [i]))
    with bb.applied(Rows([Stack([])])):
        print("empty row patch:   ", compare(bb, prompts, alone, lambda i: [i]))
    print("itself twice:      ", compare(bb, prompts, alone, lambda i: [i, i]))
    print("8 of equal length: ", compare(bb, prompts, alone, lambda i: [i, *equal[i][:7]]))
    others = lambda i: [i, *((i + k) % n for k in range(1, 8))]  # noqa: E731
    print("8 of all lengths:  ", compare(bb, prompts, alone, others))

    speeds: dict[bool, list[float]] = {False: [], True: []}
    sides = {share: Closed(bb, given.clients, share_unedited=share) for share in speeds}
    for _ in range(4):
        for share, side in sides.items():
            jobs = [AskJob(prompt=p, tokens=32) for p in prompts]
            speeds[share].append(n / seconds([side], [jobs])[0])
    for share, side in sides.items():
        what = "in a shared batch" if share else "in forwards of their own"
        print(
            f"unedited questions per CPU second, {what}: {statistics.median(speeds[share][1:]):.1f}"
        )
        side.engine.close()


if __name__ == "__main__":
    main()
