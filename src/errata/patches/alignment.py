"""Alignment: a delta that many edits share and that acts on every question, in scope or not (LTE).

It was trained once, and each edit's patch holds it. `identity` is the hash of the state that it
comes from: of equal ones only one is live, however many edits are, because the change that was
trained is made once, not once per edit. Different ones add up like any deltas.

Tensors and arithmetic as in `delta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from errata.core.patch import Patch, common_header
from errata.patches._parts import Parts
from errata.patches.delta import Delta


class Alignment(Delta):
    """A delta with an identity; "" is like no other."""

    option_names: ClassVar[tuple[str, ...]] = ("identity",)

    def __init__(self, parts: Parts, *, identity: str = "", rows: int | None = None) -> None:
        super().__init__(parts, rows=rows)
        self.identity = identity

    def join(self, other: Patch) -> Patch:
        if not isinstance(other, Alignment) or not _one([self, other]):
            return super().join(other)
        parts = {s: dict(self.part(s)) for s in self.names}
        union = type(self)(parts, identity=self.identity)
        return union.with_header(common_header([self, other]), (*self.edits, *other.edits))

    @classmethod
    def fuse(cls, patches: Sequence[Self]) -> Self | None:
        """Equal ones have become one before (`join`); different ones stay apart."""
        return None

    @classmethod
    def in_rows(cls, patches: Sequence[Self]) -> Self | None:
        """One and the same for all rows needs no row dimension."""
        return patches[0] if _one(patches) else super().in_rows(patches)


def _one(patches: Sequence[Alignment]) -> bool:
    first = patches[0].identity
    return bool(first) and all(p.identity == first and p.rows is None for p in patches)
