"""What a protocol is: in which order edits are made and probes are asked. No torch, no model.

A protocol splits the planned cases into *units*. A unit is a tuple of *lanes* that do not influence
each other; the runner finds and asks the lanes of a unit together, one lane per row of the batch. A
unit is also what a killed run resumes at, so its composition depends on the plan only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.core.types import Answer, Case, Edit, Probe


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a step; `case` is the case (or `panel/<lane>`) that gets the answer."""

    case: str
    probe: Probe
    tag: str = ""


@dataclass(frozen=True, slots=True)
class LaneStep:
    """What happens to one lane in one step: the edits are made jointly, then the probes asked.

    Without edits the lane stays what it is: the untouched model where nothing came before.
    """

    edits: tuple[Edit, ...]
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One turn per lane, made on top of nothing (`clean`) or of the lane's earlier edits."""

    turns: tuple[LaneStep, ...]
    on: Literal["clean", "previous"] = "clean"


@dataclass(frozen=True, slots=True)
class Lane:
    """An independent chain of cases; the unit of the bootstrap."""

    id: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    id: str
    lanes: tuple[Lane, ...]


class Protocol(ABC):
    """How cases become steps.

    `argument` is what follows the colon of `sequential:20` ("" if nothing).
    """

    plugin_kind: ClassVar[str] = "protocols"
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    #: whether it asks for pictures; the others leave drawn probes out
    draws: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, argument: str = "") -> None:
        """Raises BadSpec on an argument that cannot be read."""

    @abstractmethod
    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        """Units of at most `rows` lanes each.

        A last incomplete window is dropped, and the planner records it.
        """

    @abstractmethod
    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        """Yields steps; receives the answers to each, in the order of the turns' asks."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The canonical text, with defaults filled in: `sequential:10`."""
