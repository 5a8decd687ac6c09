"""Facts about a file of published records, from the file itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from errata.benchmarks.unike_umm.cases import cases
from errata.benchmarks.unike_umm.published import SOURCES, PublishedRecord, part
from errata.core.text import mentions, normalise
from errata.core.types import Skip

SPLITS = ("train", "dev", "eval")


def audit(
    rows: Sequence[Any], found: Sequence[PublishedRecord], skips: Sequence[Skip]
) -> Mapping[str, Any]:
    """Counts, what is left out and why, and what an edit or a score could trip over."""
    subjects = Counter(r.given.casefold() for r in found)
    stages = [s for r in found for s in r.stages]
    return {
        "rows": len(rows),
        "usable": len(found),
        "sources": dict(sorted(Counter(r.source for r in found).items())),
        "categories": dict(sorted(Counter(f"{r.source}/{r.category}" for r in found).items())),
        "stages": dict(sorted(Counter(s.group for s in stages).items())),
        "stages that cannot be drawn": sum(bool(s.drawable) for s in stages),
        "left out": dict(Counter(s.reason for s in skips).most_common()),
        "subjects edited more than once": sum(n > 1 for n in subjects.values()),
        "subject in another case than in the prompt": sum(
            r.given not in r.first.prompt for r in found
        ),
        "prompts with a hole": sum(r.templated for r in found),
        "old answer missing": sum(not r.first.old for r in found),
        "old answer equal to the target": sum(
            normalise(r.first.old) == normalise(r.first.target) for r in found
        ),
        "answers of several words": sum(len(r.first.target.split()) > 1 for r in found),
        "image prompts that state the target": sum(
            mentions(s.image_prompt, s.target) for s in stages if s.target
        ),
        "image prompts that state the old answer": sum(
            mentions(s.image_prompt, s.old) for s in stages if s.old
        ),
        "splits": {s: _split(found, s) for s in SPLITS},
        "subjects shared by splits": {
            f"{a}/{b}": len(_subjects(found, a) & _subjects(found, b))
            for a, b in (("train", "eval"), ("train", "dev"), ("dev", "eval"))
        },
    }


def _split(found: Sequence[PublishedRecord], split: str) -> Mapping[str, Any]:
    made = [c for task in SOURCES for c in cases(found, task, split, "disjoint", 0)[0]]
    groups = Counter(f"{p.kind}/{p.group}" if p.group else p.kind for c in made for p in c.probes)
    return {"cases": len(made), "probes": dict(sorted(groups.items()))}


def _subjects(found: Sequence[PublishedRecord], split: str) -> set[str]:
    return {r.given.casefold() for r in found if part(r) == split}
