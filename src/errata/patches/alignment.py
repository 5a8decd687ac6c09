"""Alignment: a delta that many edits share and that acts on every prompt, in scope or not (LTE).

It was trained once, and each edit's patch holds it. `identity` is the hash of the state that it
comes from. Identical alignments are applied once, however many edits hold them; different ones add
up like any deltas.

Tensors and arithmetic as in `delta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from errata.core.patch import inherit
from errata.patches._parts import Parts
from errata.patches.delta import Delta


class Alignment(Delta):
    """A delta with an identity; "" is equal to no other."""

    one_when_live = True

    option_names: ClassVar[tuple[str, ...]] = ("identity",)

    def __init__(self, parts: Parts, *, identity: str = "", rows: int | None = None) -> None:
        super().__init__(parts, rows=rows)
        self.identity = identity

    @classmethod
    def merge(cls, patches: Sequence[Self]) -> Self | None:
        """Equal ones are applied once; different ones stay apart."""
        if not _identical(patches):
            return None
        first = patches[0]
        parts = {s: dict(first.part(s)) for s in first.names}
        return inherit(cls(parts, identity=first.identity), patches)

    @classmethod
    def batch(cls, patches: Sequence[Self]) -> Self | None:
        """If all rows have the same alignment, there is no row dimension."""
        return patches[0] if _identical(patches) else super().batch(patches)


def _identical(patches: Sequence[Alignment]) -> bool:
    first = patches[0].identity
    return bool(first) and all(p.identity == first and p.rows is None for p in patches)
