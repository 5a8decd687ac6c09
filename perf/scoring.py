"""Seconds and memory of `errata score` and `errata report` on a run of many cases.

    python perf/scoring.py [--cases 10000] [--out scoring.json]

The run is made up: cases of microworld with the ids 0, 1, ..., and answers of the kind that
`errata bench` writes for them. Each command runs in a process of its own, whose CPU seconds and
largest resident memory are printed. Numbers: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from children import run_errata

from errata.core import registry
from errata.core.files import append_lines, write_json
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Answer, Case, Scored, to_json

#: questions of a case, each of another kind (E-VQA has 5 or 6)
PROBES = 6
SAID = Scored((11, 12, 13), (-0.11213, -1.20412, -0.00012), (11, 12, 14))


def write_run(path: Path, count: int) -> int:
    """A run of `count` cases, each edited alone; returns the number of its questions."""
    spec = BenchmarkSpec.parse("microworld:vqa@train")
    some = registry.load("benchmarks", spec.name)().load(spec).cases[:100]
    some = [replace(c, probes=tuple({p.kind: p for p in c.probes}.values())[:PROBES]) for c in some]
    cases = [replace(some[i % len(some)], id=f"{i:05d}") for i in range(count)]
    lanes = [{"id": f"l{i:05d}", "cases": [c.id]} for i, c in enumerate(cases)]
    plan: dict[str, Any] = {
        "schema": 1, "benchmark": str(spec), "protocol": "one_step", "panel": [], "dropped": [],
        "cases": [to_json(c) for c in cases],
        "units": [{"id": f"u{i:04d}", "lanes": lanes[i : i + 16]} for i in range(0, count, 16)],
    }  # fmt: skip
    write_json(path / "plan.json", plan)
    manifest = {
        "schema": 1, "editor": "ft_l", "backbone": "micro-vlm", "config": {},
        "benchmark": str(spec), "protocol": "one_step",
    }  # fmt: skip
    write_json(path / "manifest.json", manifest)
    for start in range(0, count, 1000):
        part = cases[start : start + 1000]
        append_lines(path / "before.jsonl", [a for c in part for a in answers(c, -1)])
        append_lines(path / "answers.jsonl", [a for c in part for a in answers(c, 0)])
    return sum(len(c.probes) for c in cases)


def answers(case: Case, step: int) -> list[Answer]:
    wrong = int(case.id) % 3 == 0
    return [
        Answer(case.id, p.id, step, text="other" if wrong else p.reference or "said",
               ids=(11, 12, 13), reference=SAID, own=SAID if step >= 0 else None)
        for p in case.probes
    ]  # fmt: skip


def measured(*command: str) -> dict[str, float]:
    """CPU seconds and the largest resident memory (MB) of a command."""
    took = run_errata(*command)
    return {"cpu_s": took.cpu_s, "peak_mb": took.peak_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        questions = write_run(run, args.cases)
        result = {
            "cases": args.cases, "questions": questions,
            "score": measured("score", str(run)),
            "report": measured("report", str(run), "--html", str(Path(folder) / "report.html")),
        }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
