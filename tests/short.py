"""Fewer cases and probes of `microworld`: hashing and asking all is most of a short run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from errata.benchmarks.microworld import Microworld
from errata.core.measure.benchmark import BenchmarkSpec, Loaded
from errata.core.types import Probe


@contextmanager
def short_microworld(**cases: int) -> Iterator[None]:
    """Within it, a split yields its first `cases[split]` cases.

    A case keeps one probe of each kind and group, and two far ones, as the plan may drop one.
    The panel is every fifth question.
    """
    whole, panel = Microworld.load, Microworld.panel

    def load(self: Microworld, spec: BenchmarkSpec, **more: Any) -> Loaded:
        first = whole(self, spec, **more).cases[: cases[spec.split]]
        return Loaded(tuple(c.with_probes(_few(c.probes)) for c in first))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Microworld, "load", load)
        patch.setattr(Microworld, "panel", lambda self, spec, **more: panel(self, spec)[::5])
        yield


def _few(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    groups: dict[tuple[str, str], list[Probe]] = defaultdict(list)
    for p in probes:
        groups[p.kind, p.group].append(p)
    few = {p.id for g in groups.values() for p in g[: 2 if g[0].group == "far" else 1]}
    return tuple(p for p in probes if p.id in few)
