"""Drift from the text model to the picture on tiny models that draw, with random weights.

    python experiments/drift_tiny.py --out FOLDER [NAME ...]

Writes FOLDER/drift-tiny.csv, per model and stage: how far an edit by memit (blocks 0 and 1) and a
random change of equal norm move it, in the units of the UniKE study (cosine per token, relative
Frobenius norm) and as signal (over the median distance between two prompts); and for Janus
FOLDER/drift-heads.csv, the same states through the head that says and the one that draws. Image
stages are read at the first step, where the latents are still equal.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from errata.analyses.drift import DriftAnalysis
from errata.analyses.drift.trace import trace_drawing
from errata.core.analysis import Subject
from errata.core.types import Case, Edit, JudgeQuestion, Probe, Prompt, StatedFact
from errata.editors.memit import Memit
from errata.evaluation.statistics.intervals import Intervals
from errata.patches.rows import Rows
from errata.testing.drawing import emu3, janus, standins
from errata.testing.drawing.pipelines import PIPELINES, wrapped

THINGS = ("ring", "thing", "shape", "star", "colour", "fact", "photo", "scene", "flag", "stone")
COLOURS = ("red", "blue", "green")
KEEP, SEEDS = 8, 1
LAYERS = (0, 1)
BY_TOKENS = {"janus": janus, "emu3": emu3}
CONDITIONS = ("edit", "random", "oracle", "twin")


def cases(*kinds: str) -> list[Case]:
    made = []
    for i, named in enumerate(f"{kind} {thing}" for kind in kinds for thing in THINGS):
        thing, target = named, COLOURS[i % 3]
        view = JudgeQuestion(f"What colour is the {thing}?", f"the {thing} is {target}", target)
        told = StatedFact(Prompt.of(f"a photo of the {target} {thing}"), "")
        drawn = Probe(
            "vqa/stage1", Prompt.of(f"a photo of the {thing}"), "vqa", "stage1", view=view,
            aids=told,
        )  # fmt: skip
        edit = Edit(Prompt.of(f"The colour of the {thing} is"), target, thing, id=f"case-{i:02d}")
        made.append(Case(edit.id, edit, (drawn,)))
    return made


def model(name: str) -> Any:
    if name in BY_TOKENS:
        return BY_TOKENS[name].wrapped()
    return wrapped(name) if name in PIPELINES else standins.wrapped(name)


def subject(name: str) -> Subject:
    bb, made = model(name), tuple(cases("big", "old")[:KEEP])
    editor = Memit(layers=LAYERS, steps=6, lr=0.5, mom2_weight=10.0, edited=True)
    state = editor.prepare(bb, cases("low", "new", "dry", "far"))  # texts about other things
    return Subject(bb, made, "unike_umm:attribute", editor, state, rows=KEEP)


def stages(name: str) -> Iterator[list[Any]]:
    """Per stage the drift of the edit and of the controls, over cases."""
    given = subject(name)
    findings = DriftAnalysis(seeds=SEEDS, steps=3).look(given)
    table = next(t for t in findings.tables if t.name == "drift")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for stage in findings.facts["stages"]:
        of_stage = [r for r in rows if r["stage"] == stage and r["group"] == "all"]
        first = {r["condition"]: r for r in of_stage if not r["time"]}
        row: list[Any] = [name, stage, first["edit"]["n"]]
        for measure in ("relative", "cosine", "signal"):
            row += [first["edit"][f"{measure}{end}"] for end in ("", "_low", "_high")]
        row += [first[c]["signal"] if c in first else None for c in CONDITIONS[1:]]
        yield row


def heads() -> Iterator[list[Any]]:
    """Janus: the states of the prompt's last token, behind which both heads lie, per case."""
    given = subject("janus")
    bb, items = given.backbone, given.cases
    edits = [c.edit for c in items]
    assert given.editor is not None
    found = given.editor.edit_rows(bb, edits, [given.state] * len(edits), seed=0)
    prompts = [c.probes[0].prompt for c in items]
    subjects = [e.subject or "" for e in edits]
    of: dict[str, list[list[float]]] = {}
    fresh, edited = (
        trace_drawing(bb, prompts, subjects, [0], [0], *hooks)[0]
        for hooks in ([], [Rows([r.patch for r in found])])
    )
    last = fresh.mask.sum(1) - 1
    at = torch.arange(len(items)), last
    taps = [t.text["tap"][at].to(bb.dtype) for t in (fresh, edited)]
    said = [bb.site("head").first(x) for x in taps]
    drawn = [bb.site("draw.logits").first(x) for x in taps]
    random = torch.randn(taps[0].shape, generator=torch.Generator().manual_seed(0))
    random *= (taps[1] - taps[0]).norm(dim=1, keepdim=True) / random.norm(dim=1, keepdim=True)
    both = [taps[0], taps[0] + random]
    pairs = {
        "trunk": (taps, both),
        "said": (said, [bb.site("head").first(x) for x in both]),
        "drawn": (drawn, [bb.site("draw.logits").first(x) for x in both]),
    }
    for place, (by_edit, by_random) in pairs.items():
        row: list[Any] = ["janus", place, len(items)]
        for a, b in (by_edit, by_random):
            relative = ((b - a).norm(dim=1) / a.norm(dim=1)).tolist()
            row += _interval(relative)
            of.setdefault(place, []).append(relative)
            turned = (a.argmax(1) != b.argmax(1)).float().tolist()
            row.append(None if place == "trunk" else round(sum(turned) / len(turned), 4))
        yield row


def _interval(values: list[float]) -> list[float]:
    names = [str(i) for i in range(len(values))]
    of_case = {n: [v] for n, v in zip(names, values, strict=True)}
    mean = Intervals(names).mean([of_case], [1.0])
    assert mean is not None and mean.ci95 is not None
    return [round(x, 6) for x in (mean.value, *mean.ci95)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=[*PIPELINES, *BY_TOKENS, *standins.STANDINS])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ends = ("", "_low", "_high")
    columns = ["model", "stage", "n", *(f"{m}{e}" for m in ("relative", "cosine", "signal")
                                        for e in ends)]  # fmt: skip
    path = args.out / "drift-tiny.csv"
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*columns, *(f"signal of {c}" for c in CONDITIONS[1:])])
        for name in args.names:
            for row in stages(name):
                writer.writerow(row)
            f.flush()
            print(name, flush=True)
    if "janus" in args.names:
        with (args.out / "drift-heads.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            by = [f"{m} by {c}" for c in ("edit", "random") for m in
                  ("relative", "low", "high", "other token")]  # fmt: skip
            writer.writerow(["model", "place", "n", *by])
            writer.writerows(heads())


if __name__ == "__main__":
    main()
