"""A generated world of small pictures and fictional facts: no download, every kind of text probe.

The world itself is in `errata.synthetic.objects`: `world` (things, facts, splits), `render`
(pictures), `language` (wordings). Here are the splits (`slices`), the edits (`cases`) and their
probes (`probes`, `text_edits`). Nothing is read from disk.

Version 2 keeps what a portability question leads to apart between the splits, holds a colour, a
shape and two templates back for `@eval/unseen`, and asks more (near things in another pose and
light, other facts of the thing, the other modality). `@eval/v1` gives the cases of version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image as PilImage

from errata.benchmarks.microworld import audit, cases
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Probe
from errata.synthetic.objects import render, world


class Microworld(Benchmark):
    """Edits at 40 x 40 pictures of single things (`vqa`, `caption`), of named ones in `text`."""

    name: ClassVar[str] = "microworld"
    version: ClassVar[str] = "2"
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption", "text")
    default_tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")
    variants: ClassVar[tuple[str, ...]] = (
        "published", "disjoint", "unseen", "all", "consequences", "v1",
    )  # fmt: skip

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """The cases of all tasks of `spec`, task after task. `root` is not used."""
        tasks = spec.tasks or self.default_tasks
        loaded = [c for t in tasks for c in cases.cases(t, spec.split, spec.variant, seed)]
        return Loaded(tuple(loaded))

    def drawn_as(self, spec: BenchmarkSpec) -> str:
        """Runs of version 1 were drawn as `disjoint`."""
        return str(replace(spec, variant="disjoint") if spec.variant == "v1" else spec)

    def panel(self, spec: BenchmarkSpec, *, root: Path | None = None) -> tuple[Probe, ...]:
        """50 questions about things that no case edits. The same for every spec."""
        return cases.panel()

    def open_image(self, spec: str) -> PilImage.Image:
        """Renders the scene. Raises BadImage if `spec` is not a canonical scene."""
        return PilImage.fromarray(render.render(world.ObjectScene.parse(spec)))

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Counts of each split, and what train shares with eval and dev in each variant."""
        return audit.audit(self.tasks)

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """The world is generated; no file can be missing."""
        return {"present": [], "missing": [], "damaged": [], "note": "generated, needs no files"}
