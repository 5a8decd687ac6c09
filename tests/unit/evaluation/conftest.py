"""One small run for the tests of this folder; its numbers are derived in test_score.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.core.files import append_lines, write_json
from errata.core.types import Answer, Case, Edit, Probe, Prompt, to_json

MakeRun = Callable[..., Path]

LANES = {"l0": ("a", "b"), "l1": ("c", "d")}
SAID = {"a": "new", "b": "old", "c": "New.", "d": "new"}
KEPT = {
    "a": {"n1a": True, "n1b": False, "n2": True},
    "b": {"n1a": True, "n1b": True},
    "c": {"n1a": False, "n1b": False, "n2": False},
    "d": {"n1a": True, "n1b": True},
}
PANEL = tuple(Probe(f"p{i}", Prompt.of(f"panel {i}"), "retention", reference="x") for i in (0, 1))


def make_case(name: str) -> Case:
    near = [
        Probe(p, Prompt.of(p), "near_locality", "near2" if p == "n2" else "near1", "gold")
        for p in KEPT[name]
    ]
    prompt = Prompt.of(f"what is {name}?")
    return Case(
        name,
        Edit(prompt, "new"),
        (Probe("rel", prompt, "reliability", reference="new"), *near),
        origin="counterfactual" if name in "ac" else "correction",
    )


def write_run(path: Path, drop: int = 0) -> Path:
    cases = [make_case(name) for name in KEPT]
    units = [{"id": "u0", "lanes": [{"id": k, "cases": v} for k, v in LANES.items()]}]
    plan: dict[str, Any] = {
        "schema": 1,
        "cases": [to_json(c) for c in cases],
        "panel": [to_json(p) for p in PANEL],
        "units": units,
        "dropped": [],
    }
    write_json(path / "manifest.json", {"schema": 1})
    write_json(path / "plan.json", plan)
    before = [Answer("panel", p.id, text="x", ids=(1,)) for p in PANEL]
    after = []
    for case in cases:
        first = "new" if case.id == "b" else "old"
        before.append(Answer(case.id, "rel", text=first, ids=(2,)))
        before += [Answer(case.id, p, text="gold", ids=(3,)) for p in KEPT[case.id]]
        after.append(Answer(case.id, "rel", 0, "own", text="new", ids=(4,)))
        after += [Answer(case.id, p, 0, "own", text="gold", ids=(3,)) for p in KEPT[case.id]]
        after.append(Answer(case.id, "rel", 1, text=SAID[case.id], stopped=case.id != "d"))
        after += [
            Answer(case.id, p, 1, ids=(3,) if kept else (9,)) for p, kept in KEPT[case.id].items()
        ]
    for lane, kept_ids in (("l0", (1, 8)), ("l1", (1, 1))):
        after += [
            Answer(f"panel/{lane}", p.id, 1, ids=(i,)) for p, i in zip(PANEL, kept_ids, strict=True)
        ]
    append_lines(path / "before.jsonl", before)
    append_lines(path / "answers.jsonl", after[: len(after) - drop])
    return path


@pytest.fixture
def make_run() -> MakeRun:
    """`make_run(path, drop=0)` writes the run, without its last `drop` answers."""
    return write_run
