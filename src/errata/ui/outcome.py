"""What a correction did, for people: a row per question and a sentence about all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from errata.core.formats.counts import counted
from errata.core.text import same_answer
from errata.core.types import Image

#: kind of question -> its heading
HEADINGS = {
    "edited": "The corrected question",
    "rephrased": "In other words",
    "near": "Nearby questions",
    "unrelated": "Unrelated questions",
    "earlier": "Earlier corrections",
}


@dataclass(frozen=True)
class Way:
    """A method and its reach. holds: whether the question is answered with the target."""

    method: str
    reach: str
    holds: bool

    @property
    def label(self) -> str:
        return f"{self.method}, {self.reach}"


@dataclass(frozen=True)
class Answered:
    """A question before and after; one answer after for each way. kind: a key of HEADINGS."""

    kind: str
    question: str
    picture: Image | None
    before: str
    after: tuple[str, ...]
    target: str

    @property
    def follows(self) -> bool:
        """Whether the answer should be the target; if not, it should stay as it was."""
        return self.kind in ("edited", "rephrased")

    def good(self, way: int) -> bool:
        if self.follows:
            return same_answer(self.after[way], self.target)
        return self.after[way] == self.before

    def verdict(self, way: int) -> str:
        if self.follows:
            return "as it should be" if self.good(way) else "not as it should be"
        return "unchanged" if self.good(way) else "changed"


@dataclass(frozen=True)
class DrawnTriple:
    """Pictures (PIL) before, after, and of the unedited model with the new fact in its prompt."""

    before: Any
    after: Any
    oracle: Any
    prompt: str
    stated: str


@dataclass(frozen=True)
class Outcome:
    """ways: one, or two that are compared. drawn: for each way, or empty."""

    ways: tuple[Way, ...]
    rows: tuple[Answered, ...]
    target: str
    drawn: tuple[DrawnTriple, ...] = ()

    def of_kind(self, kind: str) -> list[Answered]:
        return [r for r in self.rows if r.kind == kind]

    def sentence(self, way: int = 0) -> str:
        """Whether it holds, and what else changed."""
        says = self.of_kind("edited")[0]
        if self.ways[way].holds:
            words = f"It holds: the answer is now “{says.after[way]}”."
        else:
            words = f"It does not hold: the answer is “{says.after[way]}”, not “{self.target}”."
        follow = self.of_kind("rephrased")
        if follow and not all(r.good(way) for r in follow):
            words += " Asked in other words, the model does not follow."
        others = [r for r in self.rows if not r.follows and r.kind != "earlier"]
        changed = sum(not r.good(way) for r in others)
        if changed:
            words += f" {changed} of {counted(len(others), 'other question')} changed too."
        elif others:
            words += f" No other question changed ({len(others)} asked)."
        if self.lost(way):
            words += f" {counted(self.lost(way), 'earlier correction')} no longer as before."
        return words

    def lost(self, way: int = 0) -> int:
        """How many earlier corrections have another answer than before."""
        return sum(not r.good(way) for r in self.of_kind("earlier"))
