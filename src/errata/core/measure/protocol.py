"""A protocol defines in which order edits are made and probes are asked. No torch, no model.

A protocol divides the planned cases into units. A unit is a tuple of lanes that do not influence
each other: the runner edits and asks the lanes of a unit together, one lane per row of the batch. A
killed run resumes at a unit, so units depend on the plan only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.core.types import Answer, Case, Edit, Probe


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a step. case: the id that its answer is stored under, or `panel/<lane>`."""

    case: str
    probe: Probe
    tag: str = ""


@dataclass(frozen=True, slots=True)
class LaneStep:
    """One lane in one step: the edits are made jointly, then the probes are asked.

    Without edits the lane keeps its earlier edits, if it has any.
    """

    edits: tuple[Edit, ...]
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One `LaneStep` per lane, on the unedited model (`clean`) or on the lane's earlier edits."""

    lanes: tuple[LaneStep, ...]
    on: Literal["clean", "previous"] = "clean"


@dataclass(frozen=True, slots=True)
class Lane:
    """An independent sequence of cases; intervals are over lanes."""

    id: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """Lanes that are edited and asked together."""

    id: str
    lanes: tuple[Lane, ...]


class Protocol(ABC):
    """Turns cases into steps. `argument` is the text after the colon of `sequential:20`, or ""."""

    plugin_kind: ClassVar[str] = "protocols"
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    #: whether the protocol draws pictures; other protocols drop drawn probes
    draws: ClassVar[bool] = False
    #: whether intervals are over the cases of a lane where there is only one lane
    cases_of_one_lane: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, argument: str = "") -> None:
        """Raises BadSpec if the argument cannot be read."""

    @abstractmethod
    def plan(self, cases: Sequence[Case], *, rows: int, seed: int) -> tuple[Unit, ...]:
        """Units of at most `rows` lanes each.

        Cases that fill no complete window are left out; the plan records them as dropped.
        """

    @abstractmethod
    def steps(self, unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
        """Yields steps and receives the answers to each, in the order of its asks."""

    @property
    @abstractmethod
    def spec(self) -> str:
        """The canonical text with defaults filled in, such as `sequential:10`."""
