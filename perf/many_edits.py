"""A sequence of edits of one model: what edit k and a question after it cost, and memory.

    OMP_NUM_THREADS=1 python perf/many_edits.py [--edits 1000] [--editors ft_l,memit] [--out F.csv]

Each edit of micro-vlm is found on top of all earlier ones, as `sequential:K` does, and the first
token of the answer to a question is asked after it. CPU seconds of the process; a row is the median
of a window of edits. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import errata
from errata.core import registry
from errata.core.editor import Editor
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.model.memory import resident_mb
from errata.core.patch import Patch
from errata.core.state import State
from errata.core.types import Edit
from errata.patches.stack import folded

EDITORS = ("ft_l", "memit", "unike", "serac")


def edits_of(count: int) -> list[Edit]:
    """Edits of different pictures, as many as there are, then with other numbers of the same."""
    spec = BenchmarkSpec.parse("microworld:vqa@train")
    cases = registry.load("benchmarks", spec.name)().load(spec).cases
    unique = list({(c.edit.prompt, c.edit.target): c.edit for c in cases}.values())
    if len(unique) < count:
        raise SystemExit(f"the benchmark holds {len(unique)} edits, {count} are asked for.")
    return unique[:count]


def editor_of(bb: Backbone, name: str) -> tuple[Editor, State | None]:
    """An editor and its state. A state that must be trained is trained for a few steps only: what
    an edit costs does not depend on how good it is.
    """
    cls = registry.load("editors", name)
    editor = cls(**({"steps": 4} if cls.needs_state else {})).for_backbone(bb)
    if not editor.uses_state:
        return editor, None
    spec = BenchmarkSpec.parse("microworld:vqa@train")
    cases = registry.load("benchmarks", spec.name)().load(spec).cases[:64]
    return editor, editor.shipped_state(bb) or editor.prepare(bb, cases)


def sequence(bb: Backbone, name: str, edits: list[Edit], window: int) -> list[dict[str, Any]]:
    """A row per window: medians of the CPU seconds of an edit and of a question, and memory."""
    editor, state = editor_of(bb, name)
    patch: Patch | None = None
    rows, found, asked, steps = [], [], [], []
    with bb.applied(editor.edit(bb, edits[:1], state).patch):  # warm
        errata.ask(bb, [edits[0].prompt])
    for k, edit in enumerate(edits, 1):
        began = time.process_time()
        with bb.applied(patch):
            result = editor.edit(bb, [edit], state)
        state = result.state
        steps.append(result.log.steps or 0)
        patch = result.patch if patch is None else folded(patch, result.patch)
        found.append(time.process_time() - began)
        began = time.process_time()
        with bb.applied(patch):
            errata.ask(bb, [edit.prompt], cap=1)  # a worn out model says more tokens
        asked.append(time.process_time() - began)
        if k % window == 0 or k == len(edits):
            rows.append(
                {
                    "editor": name, "edits": k, "steps": statistics.median(steps),
                    "edit_s": statistics.median(found),
                    "question_s": statistics.median(asked), "rss_mb": resident_mb(),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            found, asked, steps = [], [], []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    edits = edits_of(args.edits)
    rows = []
    for name in args.editors.split(","):
        rows += sequence(errata.load("micro-vlm"), name, edits, args.window)
        if args.out:
            with args.out.open("w", encoding="utf-8", newline="") as f:
                writer = csv.DictWriter(f, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
