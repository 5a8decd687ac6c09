"""A generated world of small pictures and fictional facts: no download, every kind of text probe.

The world itself is in `errata.synthetic.objects`: `world` (things, facts, splits), `render`
(pictures), `language` (wordings). Here are the edits (`cases`) and their probes (`probes`). Nothing
is read from disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image as PilImage

from errata.benchmarks.microworld import cases
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Case, Probe
from errata.synthetic.objects import language, render, world


class Microworld(Benchmark):
    """Tasks `vqa` and `caption` about single things, generic or named, in 40 x 40 pictures."""

    name: ClassVar[str] = "microworld"
    version: ClassVar[str] = "1"
    tasks: ClassVar[tuple[str, ...]] = ("vqa", "caption")

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """The cases of all tasks of `spec`, task after task. `root` is not used."""
        tasks = spec.tasks or self.tasks
        loaded = [c for t in tasks for c in cases.cases(t, spec.split, spec.variant, seed)]
        return Loaded(tuple(loaded))

    def panel(self, spec: BenchmarkSpec, *, root: Path | None = None) -> tuple[Probe, ...]:
        """50 questions about things that no case edits. The same for every spec."""
        return cases.panel()

    def open_image(self, spec: str) -> PilImage.Image:
        """Renders the scene. Raises BadImage if `spec` is not a canonical scene."""
        return PilImage.fromarray(render.render(world.ObjectScene.parse(spec)))

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Counts of each split, and what train shares with eval and dev in each variant."""
        out: dict[str, Any] = {"splits": {}, "shared": {}}
        loaded = {
            (v, s): [c for t in self.tasks for c in cases.cases(t, s, v, 0)]
            for v in self.variants
            for s in self.splits
        }
        for split in self.splits:
            out["splits"][split] = _counts(loaded["disjoint", split])
        for variant in self.variants:
            facts = {s: _facts(loaded[variant, s]) for s in self.splits}
            out["shared"][variant] = {
                f"{a}/{b}": {k: len(facts[a][k] & facts[b][k]) for k in facts[a]}
                for a, b in (("train", "eval"), ("train", "dev"), ("dev", "eval"))
            }
        out["eval_equal_in_both_variants"] = (
            loaded["published", "eval"] == loaded["disjoint", "eval"]
        )
        known = world.known_entities()
        out["entities"] = {
            "known": len(known),
            "withheld": len(world.entities()) - len(known),
            "facts withheld from known entities": sum(len(e.hidden) for e in known),
            "generic looks": len(world.generic_looks()),
        }
        return out

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """The world is generated; no file can be missing."""
        return {"present": [], "missing": [], "damaged": [], "note": "generated, needs no files"}


def _counts(loaded: Iterable[Case]) -> dict[str, Any]:
    loaded = list(loaded)
    groups: Counter[str] = Counter()
    for c in loaded:
        groups.update(f"{p.kind}/{p.group}" if p.group else p.kind for p in c.probes)
    return {
        "cases": dict(sorted(Counter(c.task for c in loaded).items())),
        "origin": dict(sorted(Counter(f"{c.task}/{c.origin}" for c in loaded).items())),
        "asked": dict(sorted(Counter(f"{c.task}/{c.asked}" for c in loaded).items())),
        "probes": dict(sorted(groups.items())),
    }


def _facts(loaded: Iterable[Case]) -> dict[str, set[Any]]:
    """What two splits could share: kind of fact -> the facts of these cases."""
    out: dict[str, set[Any]] = {
        k: set()
        for k in (
            "(shape, colour, pattern, asked)",
            "edited entities",
            "edit images",
            "unseen wordings",
            "far m-locality (image, question)",
            "far t-locality questions",
            "near-locality prompts",
        )
    }
    for c in loaded:
        scope = dict(c.scope)
        triple = (scope["shape"], scope["colour"], scope["pattern"])
        out["(shape, colour, pattern, asked)"].add((*triple, c.asked))
        if "name" in scope:
            out["edited entities"].add(scope["name"])
        out["edit images"].update(i.uri for i in c.edit.prompt.images)
        for p in c.probes:
            if p.group == "unseen":
                out["unseen wordings"].add(_wording(p.prompt.text))
            elif p.kind == "m_locality":
                out["far m-locality (image, question)"].add(p.prompt)
            elif p.kind == "t_locality":
                out["far t-locality questions"].add(p.prompt)
            elif p.kind == "near_locality":
                out["near-locality prompts"].add(p.prompt)
    return out


def _wording(text: str) -> str:
    """The question without the phrase for its subject."""
    for pointer in language.POINTERS:
        text = text.replace(pointer, "*")
    return text
