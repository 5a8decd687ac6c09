"""Counts of a file of published records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from errata.benchmarks.unike_umm.cases import cases
from errata.benchmarks.unike_umm.published import SOURCES, PublishedRecord, part
from errata.core.text import mentions, same_answer
from errata.core.types import Skip

SPLITS = ("train", "dev", "eval")


def audit(
    rows: Sequence[Any], usable: Sequence[PublishedRecord], skips: Sequence[Skip]
) -> Mapping[str, Any]:
    """Counts, skipped records with reasons, and properties that affect edits or scores."""
    subjects = Counter(r.given.casefold() for r in usable)
    stages = [s for r in usable for s in r.stages]
    return {
        "rows": len(rows),
        "usable": len(usable),
        "sources": dict(sorted(Counter(r.source for r in usable).items())),
        "categories": dict(sorted(Counter(f"{r.source}/{r.category}" for r in usable).items())),
        "stages": dict(sorted(Counter(s.group for s in stages).items())),
        "stages that cannot be drawn": sum(bool(s.drawable) for s in stages),
        "left out": dict(Counter(s.reason for s in skips).most_common()),
        "subjects edited more than once": sum(n > 1 for n in subjects.values()),
        "subject in another case than in the prompt": sum(
            r.given not in r.first.prompt for r in usable
        ),
        "prompts with a hole": sum(r.templated for r in usable),
        "old answer missing": sum(not r.first.old for r in usable),
        "old answer equal to the target": sum(
            same_answer(r.first.old, r.first.target) for r in usable
        ),
        "answers of several words": sum(len(r.first.target.split()) > 1 for r in usable),
        "image prompts that state the target": sum(
            mentions(s.image_prompt, s.target) for s in stages if s.target
        ),
        "image prompts that state the old answer": sum(
            mentions(s.image_prompt, s.old) for s in stages if s.old
        ),
        "splits": {s: _split(usable, s) for s in SPLITS},
        "subjects shared by splits": {
            f"{a}/{b}": len(_subjects(usable, a) & _subjects(usable, b))
            for a, b in (("train", "eval"), ("train", "dev"), ("dev", "eval"))
        },
    }


def _split(usable: Sequence[PublishedRecord], split: str) -> Mapping[str, Any]:
    of_split = [c for task in SOURCES for c in cases(usable, task, split, "disjoint", 0)[0]]
    groups = Counter(
        f"{p.kind}/{p.group}" if p.group else p.kind for c in of_split for p in c.probes
    )
    return {"cases": len(of_split), "probes": dict(sorted(groups.items()))}


def _subjects(usable: Sequence[PublishedRecord], split: str) -> set[str]:
    return {r.given.casefold() for r in usable if part(r) == split}
