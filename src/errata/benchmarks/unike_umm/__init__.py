"""Does a text edit show in generated pictures? The UniKE benchmark for unified multimodal models.

`unike_umm:FILE.json[@split][/published]` reads the published records (UniKE.json, see `published`).
They are the tasks `attribute` and `relation`, which can be named alone, with the file as `--root`.
Task `microworld` is generated (see `world`) and made for the bundled micro-umm. The name has `umm`
in it because an unrelated work on vision-language models is called UniKE too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks._rewrites import file_hash
from errata.benchmarks.unike_umm import audit, published, world
from errata.benchmarks.unike_umm.cases import cases
from errata.core.errors import BadData
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, Skip


class UnikeUmm(Benchmark):
    """One text edit per case, with completions, rationales and pictures at up to four stages."""

    name: ClassVar[str] = "unike_umm"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = (world.TASK, *published.SOURCES)
    source: ClassVar[str] = "FILE.json"
    source_tasks: ClassVar[tuple[str, ...]] = published.SOURCES

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """The cases of all tasks of `spec`, task after task.

        The generated world is the same in both variants.
        """
        loaded: list[Case] = []
        skipped: list[Skip] = []
        records: list[published.PublishedRecord] = []
        tasks = spec.tasks or self.tasks
        if set(tasks) & set(published.SOURCES):
            path = published.find_file(published.place(spec.source, root))
            records, skipped = published.records(published.read(path))
        for task in tasks:
            if task == world.TASK:
                loaded += world.cases(spec.split, seed)
            else:
                of_task, missing = cases(records, task, spec.split, spec.variant, seed)
                loaded += of_task
                skipped += missing
        return Loaded(tuple(loaded), tuple(skipped))

    def drawn_as(self, spec: BenchmarkSpec) -> str:
        """A file's cases stand in one order, however and wherever the file is named."""
        return str(replace(spec, source=""))

    def files(self, spec: BenchmarkSpec, *, root: Path | None = None) -> Mapping[str, str]:
        if not set(spec.tasks or self.tasks) & set(published.SOURCES):
            return {}
        path = published.find_file(published.place(spec.source, root))
        return {path.name: file_hash(path)}

    def judge(self, task: str) -> str:
        return "rendered_shapes" if task == world.TASK else ""

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Facts of the generated world, and of the published file if it is there."""
        out: dict[str, Any] = {world.TASK: world.audit()}
        if (path := self._file(root)) is not None:
            rows = published.read(path)
            out[published.FILE] = audit.audit(rows, *published.records(rows))
        return out

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """The generated world needs no files; the published file is optional."""
        out: dict[str, Any] = {world.TASK: "generated, needs no files", "ok": True}
        path = self._file(root)
        if path is None:
            return {**out, published.FILE: "not there"}
        rows = published.read(path)
        records, skips = published.records(rows)
        facts = {
            "path": str(path),
            "rows": len(rows),
            "usable": len(records),
            "unusable rows": sum(s.id.startswith("row-") for s in skips),
        }
        return {**out, published.FILE: facts, "ok": bool(records)}

    def _file(self, root: Path | None) -> Path | None:
        """The published file, if it is there. Raises BadData if `root` is given and lacks it."""
        try:
            return published.find_file(root)
        except BadData:
            if root is not None:
                raise
            return None
