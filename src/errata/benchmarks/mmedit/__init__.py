"""MMEdit (E-VQA and E-IC): the released annotation files, with a `disjoint` train split.

Cheng et al. 2023. errata ships no annotations and no pictures. `--root DIR`, or the folder `mmedit`
in ERRATA_HOME, holds `vqa_train.json`, `vqa_eval.json`, `caption_train_edit.json` and
`caption_eval_edit.json` (flat, by task, or in `editing-data`), and `val2014` and
`val2014_image_rephrase` (at the top or in `images`). A split needs only its own file of the task;
`dev` and the `disjoint` train split need both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks.mmedit import audit, splits
from errata.benchmarks.mmedit.cases import MMEditFolder, build, image_folder
from errata.benchmarks.mmedit.rows import (
    RELEASED,
    MMEditRow,
    ReleasedFile,
    file_sha256,
    find_file,
    find_root,
    places,
    read_rows,
    released,
)
from errata.core.errors import BadData
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, Skip


class MMEdit(Benchmark):
    """E-VQA (task `vqa`) and E-IC (task `caption`)."""

    name: ClassVar[str] = "mmedit"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """Cases in file order, task after task. Images are checked if their folder is there.

        `seed` samples the M-locality probes of the disjoint train and dev splits, nothing else.
        Raises BadData for missing or damaged annotation files.
        """
        folder = find_root(root)
        tasks = tuple(dict.fromkeys(spec.tasks or self.tasks))
        cases: list[Case] = []
        skipped: list[Skip] = []
        for task, selected in _select(folder, spec, tasks, seed).items():
            images = image_folder(folder, selected.rows)
            part = "eval" if spec.split == "eval" else "train"
            for row, triple in zip(selected.rows, selected.triples, strict=True):
                case, skips = build(task, part, row, triple, images)
                cases += [case] if case else []
                skipped += skips
        return Loaded(tuple(cases), tuple(skipped))

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Leaks and unclean rows of every task of which both files are there."""
        folder = find_root(root)
        parts = ("train", "eval")
        tasks = [t for t in self.tasks if all(_has(folder, t, part) for part in parts)]
        if not tasks:
            raise BadData(
                f"{folder} holds the train and eval file of no task. Put vqa_train.json and "
                "vqa_eval.json there, or pass another --root."
            )
        train = {t: _read(folder, t, "train") for t in tasks}
        held_out = {t: _read(folder, t, "eval") for t in tasks}
        facts: dict[str, Any] = {
            t: {
                "train": audit.describe(train[t]),
                "eval": audit.describe(held_out[t]),
                "leaks": audit.leaks(train[t], held_out[t]),
                "disjoint": audit.describe_disjoint(t, {t: train[t]}, {t: held_out[t]}),
            }
            for t in tasks
        }
        if len(tasks) > 1:
            facts["both"] = {
                "leaks": audit.cross_task(train, held_out),
                "disjoint": {t: audit.describe_disjoint(t, train, held_out) for t in tasks},
            }
        facts["not_audited"] = [t for t in self.tasks if t not in tasks]
        return facts

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Per annotation file: path, rows, whether it is the released one, missing images."""
        folder = find_root(root)
        files = {f.name: _verify(folder, f) for f in RELEASED}
        return {"root": str(folder), "ok": all(f["ok"] for f in files.values()), "files": files}


def _has(root: Path, task: str, part: str) -> bool:
    return any(os.path.isfile(p) for p in places(root, released(task, part)))


def _read(root: Path, task: str, part: str) -> tuple[MMEditRow, ...]:
    return read_rows(find_file(root, released(task, part)))


def _select(
    root: Path, spec: BenchmarkSpec, tasks: Sequence[str], seed: int
) -> dict[str, splits.Selected]:
    if spec.split == "eval":
        return {t: splits.as_released(_read(root, t, "eval")) for t in tasks}
    train = {t: _read(root, t, "train") for t in tasks}
    if spec.split == "train" and spec.variant == "published":
        return {t: splits.as_released(rows) for t, rows in train.items()}
    held_out = {t: _read(root, t, "eval") for t in tasks}
    if spec.variant == "published":
        edited = splits.edited_images(held_out.values())
        return {t: splits.as_released(splits.dev_rows(rows, edited)) for t, rows in train.items()}
    return {t: splits.disjoint(t, spec.split, train, held_out, seed) for t in tasks}


def _verify(root: Path, file: ReleasedFile) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ok": False,
        "rows_expected": file.rows,
        "sha256_expected": file.sha256,
    }
    try:
        path = find_file(root, file)
        facts |= {"path": str(path), "sha256": file_sha256(path)}
        rows = read_rows(path)
    except BadData as e:
        return facts | {"problem": str(e)}
    facts |= {"rows": len(rows), "images": _verify_images(image_folder(root, rows), rows)}
    if len(rows) != file.rows:
        facts["problem"] = f"{file.name} has {len(rows)} rows, the release {file.rows}."
    elif facts["sha256"] != file.sha256:
        facts["problem"] = f"{file.name} is not the released file: another sha256."
    facts["ok"] = "problem" not in facts and not facts["images"]["unusable"]
    return facts


def _verify_images(folder: MMEditFolder, rows: Sequence[MMEditRow]) -> dict[str, Any]:
    """Counts of distinct images; `unusable`: missing (checked if `present`) or outside the root."""
    wanted = sorted({path for row in rows for path in row.images})
    problems = [p for p in (folder.find(path)[1] for path in wanted) if p is not None]
    return {
        "folder": str(folder.base),
        "present": folder.present,
        "named": len(wanted),
        "unusable": len(problems),
        "examples": problems[:5],
    }
