"""Facts: the user's own facts from a JSON Lines file, `facts:FILE.jsonl`.

A row holds an edit (`prompt`, `target`, `image`, `subject`, `old`, `id`) and what is asked before
and after it (`rephrase`, `image_rephrase`, `locality`, `portability`), see docs/facts.md and
schema.json. Images are relative to the file. A row belongs to the split `eval` unless it names
another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks.facts.rows import (
    SPLITS,
    FactQuestion,
    FactRow,
    read_bytes,
    read_facts,
)
from errata.core.errors import BadData
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, Edit, Probe, Prompt

SHOWN = 100


class Facts(Benchmark):
    """Facts of the user (task `fact`). The target is taken for true: a case is a correction."""

    name: ClassVar[str] = "facts"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("fact",)
    splits: ClassVar[tuple[str, ...]] = SPLITS
    variants: ClassVar[tuple[str, ...]] = ("disjoint",)
    source: ClassVar[str] = "FILE.jsonl"

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """Cases in file order. Raises BadData, naming the line and the field of a bad row."""
        path = _path(spec, root)
        return Loaded(tuple(_case(row) for row in _rows(path) if row.split == spec.split))

    def files(self, spec: BenchmarkSpec, *, root: Path | None = None) -> Mapping[str, str]:
        path = _path(spec, root)
        return {path.name: hashlib.sha256(read_bytes(path)).hexdigest()}

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. Every wrong field of every row; images are opened."""
        path = _given(root)
        data = read_bytes(path)
        file = read_facts(data, path.parent, decode=True)
        problems = list(map(str, file.problems))
        if not file.rows and not problems:
            problems = ["it holds no facts; write one JSON object per line"]
        return {
            "file": str(path),
            "sha256": hashlib.sha256(data).hexdigest(),
            "ok": not problems,
            "facts": len(file.rows),
            "problems": problems[:SHOWN],
            "more problems": max(0, len(problems) - SHOWN),
        }

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """root: the file. Counts, and what is said twice or asked of both train and eval.

        Raises BadData as `load` does.
        """
        rows = _rows(_given(root))
        asked = Counter((r.prompt, r.image) for r in rows)
        train = {(r.prompt, r.image) for r in rows if r.split == "train"}
        kinds = Counter(p.kind for r in rows for p in _case(r).probes)
        return {
            "facts": len(rows),
            "splits": dict(sorted(Counter(r.split for r in rows).items())),
            "probes": dict(sorted(kinds.items())),
            "facts about an image": sum(r.image is not None for r in rows),
            "questions with more than one fact": sum(n > 1 for n in asked.values()),
            "facts of eval that are in train": sum(
                (r.prompt, r.image) in train for r in rows if r.split == "eval"
            ),
        }


def _path(spec: BenchmarkSpec, root: Path | None) -> Path:
    return _given(Path(spec.source) if spec.source else None, root)


def _given(path: Path | None, root: Path | None = None) -> Path:
    if path is None:
        raise BadData("the benchmark facts reads a file. Name it: facts:FILE.jsonl.")
    return (root or Path()) / path


def _rows(path: Path) -> tuple[FactRow, ...]:
    """The rows of a file. Raises BadData unless all are right."""
    file = read_facts(read_bytes(path), path.parent)
    if file.problems:
        more = len(file.problems) - 1
        rest = f" {more} more: errata data verify facts:{path} lists them." if more else ""
        raise BadData(f"{path}, {file.problems[0]}. Correct it in the file.{rest}")
    if not file.rows:
        raise BadData(f"{path} holds no facts. Write one JSON object per line.")
    return file.rows


def _case(row: FactRow) -> Case:
    edit = Edit(Prompt.of(row.prompt, row.image), row.target, row.subject, row.old, row.id)
    return Case(row.id, edit, tuple(_probes(row, edit)), task="fact", origin="correction")


def _probes(row: FactRow, edit: Edit) -> Iterator[Probe]:
    yield Probe("reliability", edit.prompt, "reliability", reference=row.target)
    for i, text in enumerate(row.rephrase):
        prompt = Prompt.of(text, row.image)
        yield Probe(f"t_generality/{i}", prompt, "t_generality", reference=row.target)
    for i, image in enumerate(row.image_rephrase):
        prompt = Prompt.of(row.prompt, image)
        yield Probe(f"m_generality/{i}", prompt, "m_generality", reference=row.target)
    for i, question in enumerate(row.locality):
        kind, group = _locality(question, row)
        yield _probe(f"{kind}/{i}", question, kind, group)
    for i, question in enumerate(row.portability):
        yield _probe(f"portability/{i}", question, "portability")


def _locality(question: FactQuestion, row: FactRow) -> tuple[str, str]:
    """(kind, group): a question about the edited image is near, every other one far."""
    if question.image is None:
        return "t_locality", "far"
    if question.image == row.image:
        return "near_locality", "same_image"
    return "m_locality", "far"


def _probe(name: str, question: FactQuestion, kind: str, group: str = "") -> Probe:
    prompt = Prompt.of(question.prompt, question.image)
    return Probe(name, prompt, kind, group, question.answer)
