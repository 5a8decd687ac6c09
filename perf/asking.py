"""Questions about pictures: one prefix per picture, against one question after the other.

    OMP_NUM_THREADS=1 python perf/asking.py [--tokens 576] [--pictures 1] [--questions 5] [--long]

A random LLaVA of 12 blocks, d = 512. The plain loop is the peers' order of work on this library's
parts: each question alone, from its pixels, with the whole prompt in every forward. `generated`:
answers and scores; `forced`: scores under teacher forcing alone, as `errata bench --forced` asks
after an edit and the peers always do. `--long`: the references are captions of some 40 words. The
sides take turns; CPU seconds of the process; both give the same answers. Numbers:
docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import random_llava

from errata.core import registry
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Ask
from errata.core.types import Answer, Probe, Prompt
from errata.evaluation.answers import PromptRequest, ask_all
from errata.patches.rows import Rows

WORDS = ("What is it?", "Which colour has the thing?", "Where is it?", "Is it striped or dotted?",
         "Name the shape of the small thing.", "How large is it?")  # fmt: skip
LONG = (
    "A large green ring with black dots stands in the centre of the picture, in front of a grey "
    "ground; it was made by hand, is older than it looks, and nobody knows what it was made for, "
    "where, or by whom."
)


def requests_of(
    pictures: int, questions: int, reference: str = "green"
) -> tuple[list[PromptRequest], list[Any]]:
    """The same questions about each picture, and an edit of each picture."""
    spec = BenchmarkSpec.parse("microworld:vqa@dev")
    cases = registry.load("benchmarks", spec.name)().load(spec).cases
    first = {c.edit.prompt.images: c for c in cases if c.edit.prompt.images}
    chosen = list(first.values())[:pictures]
    asked = [
        PromptRequest(Ask(c.id, Probe(f"q{n}", Prompt.of(text, c.edit.prompt.images[0]),
                                      "reliability", reference=reference)), row)
        for row, c in enumerate(chosen) for n, text in enumerate(WORDS[:questions])
    ]  # fmt: skip
    return asked, [c.edit for c in chosen]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    out = run()
    return time.process_time() - began, out


def one_by_one(bb: Any, asked: list[PromptRequest], *, forced: bool) -> list[Answer]:
    answers: list[Answer] = []
    for one in asked:
        bb.forget()
        answers += ask_all(bb, [one], step=-1, batch_size=1, forced=forced)
    return answers


def together(bb: Any, asked: list[PromptRequest], *, forced: bool) -> list[Answer]:
    bb.forget()
    return ask_all(bb, asked, step=-1, forced=forced)


def compared(bb: Any, asked: list[PromptRequest], turns: int, *, forced: bool) -> dict[str, Any]:
    """Both sides, one after the other; the smallest seconds of some turns."""
    plain_s, errata_s, fast, slow = [], [], [], []
    for _ in range(turns):
        seconds, slow = timed(lambda: one_by_one(bb, asked, forced=forced))
        plain_s.append(seconds)
        seconds, fast = timed(lambda: together(bb, asked, forced=forced))
        errata_s.append(seconds)
    return {
        "plain_s": min(plain_s), "errata_s": min(errata_s), "ratio": min(plain_s) / min(errata_s),
        "equal_answers": sum(a.ids == b.ids for a, b in zip(fast, slow, strict=True)),
        "largest_difference": difference(fast, slow),
    }  # fmt: skip


def difference(a: list[Answer], b: list[Answer]) -> float:
    return max(
        abs(x - y)
        for m, n in zip(a, b, strict=True)
        if m.reference and n.reference
        for x, y in zip(m.reference.logprobs, n.reference.logprobs, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bb = random_llava(args.tokens)
    reference = LONG if args.long else "green"
    asked, edits = requests_of(args.pictures, args.questions, reference)
    editor = registry.load("editors", "ft_l")(steps=1)
    patch = Rows([f.patch for f in editor.edit_rows(bb, edits)])
    together(bb, asked[:2], forced=False)  # warm
    result: dict[str, Any] = {
        "image_tokens": args.tokens, "pictures": args.pictures, "questions": len(asked),
        "answer_tokens": len(bb.answer_ids(reference, asked[0].ask.probe.prompt)),
    }  # fmt: skip
    for name, live in (("before", None), ("after", patch)):
        with bb.applied(live):
            for how, forced in (("generated", False), ("forced", True)):
                result[f"{name}, {how}"] = compared(bb, asked, args.turns, forced=forced)
                print(name, how, json.dumps(result[f"{name}, {how}"]), flush=True)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
