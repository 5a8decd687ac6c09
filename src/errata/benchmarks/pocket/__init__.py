"""Flags of 190 countries, and what a model knows about the countries: the world of pocket-vlm.

Every edit says that a flag is that of another country. Nothing is read but the drawings in the
package (`drawings/LICENSES.md`). The facts are in `countries.tsv`, the questions in `wordings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image as PilImage

from errata.benchmarks.pocket import cases, pictures
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Probe


class Pocket(Benchmark):
    """Task `vqa`: the flag in a picture, asked as the beginning of a sentence.

    t_generality: other wordings, trained (`seen`) and kept out (`unseen`). m_generality: drawings
    by other artists, trained (`seen`) and kept out (`unseen`). near_locality: the most similar
    flags (`near1`), facts of the old country in text (`neighbour`). portability: capital, continent
    and language of the new country, which count only if the model knows them in text.
    """

    name: ClassVar[str] = "pocket"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("vqa",)
    variants: ClassVar[tuple[str, ...]] = ("disjoint",)

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """Two cases of every flag of the split. `root` is not used."""
        return Loaded(cases.cases(spec.split, seed))

    def panel(self, spec: BenchmarkSpec, *, root: Path | None = None) -> tuple[Probe, ...]:
        """24 facts in text. The same for every spec."""
        return cases.panel()

    def open_image(self, spec: str) -> PilImage.Image:
        """The drawing `source/code`, 96 x 96. Raises BadImage."""
        return pictures.picture(spec)

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Counts of each split."""
        out: dict[str, Any] = {}
        for split in self.splits:
            loaded = cases.cases(split, 0)
            kinds = Counter(f"{p.kind}/{p.group}" for c in loaded for p in c.probes)
            out[split] = {
                "countries": len(cases.countries(split)),
                "cases": len(loaded),
                "probes": dict(sorted(kinds.items())),
            }
        return out

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Whether the sheets of drawings are there."""
        here = {s: pictures.sheet_file(s).is_file() for s in pictures.SOURCES}
        present = [s for s, is_there in here.items() if is_there]
        return {"present": present, "missing": [s for s in here if s not in present], "damaged": []}
