"""Fewer cases of `microworld`: hashing and asking all of them is most of a short run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from errata.benchmarks.microworld import Microworld
from errata.core.measure.benchmark import BenchmarkSpec, Loaded


@contextmanager
def short_microworld(**cases: int) -> Iterator[None]:
    """Within it, a split yields its first `cases[split]` cases, and the panel is every fifth."""
    whole, panel = Microworld.load, Microworld.panel

    def load(self: Microworld, spec: BenchmarkSpec, **more: Any) -> Loaded:
        return Loaded(whole(self, spec, **more).cases[: cases[spec.split]])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Microworld, "load", load)
        patch.setattr(Microworld, "panel", lambda self, spec, **more: panel(self, spec)[::5])
        yield
