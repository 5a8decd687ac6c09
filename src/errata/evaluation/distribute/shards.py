"""Shards: every n-th unit of a plan, so that n jobs make a run without knowing of each other.

All shards make the same plan, each from answers of the same unedited model. `merge` puts their
answers into one run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from errata.core.errors import BadSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunShard:
    """Shard `index` of `count`, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> RunShard:
        """From `i/n`. Raises BadSpec."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise BadSpec(f"--shard {text[:40]!r} is not i/n with 1 <= i <= n, such as 2/8.")
        return cls(int(index), int(count))

    def of(self, units: Sequence[T]) -> Sequence[T]:
        """The units of this shard, in their order."""
        return units[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
