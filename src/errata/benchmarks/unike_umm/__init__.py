"""Does a text edit reach the picture? The UniKE benchmark for models that talk and draw.

Tasks `attribute` and `relation` are the published records (UniKE.json, see `published`). The name
says `umm`, as an unrelated work on vision-language models is called UniKE too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from errata.benchmarks.unike_umm import audit, published
from errata.benchmarks.unike_umm.cases import cases
from errata.core.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, Skip


class UnikeUmm(Benchmark):
    """One text edit per case; its completions, rationales and pictures at up to four stages."""

    name: ClassVar[str] = "unike_umm"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = published.SOURCES

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """The cases of all tasks of `spec`, task after task."""
        found: list[Case] = []
        skipped: list[Skip] = []
        records, skips = published.records(published.read(published.find_file(root)))
        skipped += skips
        for task in spec.tasks or self.tasks:
            made, missing = cases(records, task, spec.split, spec.variant, seed)
            found += made
            skipped += missing
        return Loaded(tuple(found), tuple(skipped))

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        rows = published.read(published.find_file(root))
        return audit.audit(rows, *published.records(rows))

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        path = published.find_file(root)
        rows = published.read(path)
        records, skips = published.records(rows)
        whole = {s.id for s in skips if s.id.startswith("row-")}
        return {
            "present": [str(path)],
            "rows": len(rows),
            "usable": len(records),
            "unusable rows": len(whole),
            "ok": bool(records),
        }
