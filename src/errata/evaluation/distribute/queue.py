"""The queue of units of work: which worker runs which, and what can be written.

Results are released in the order of the units, so that a run folder, or a state, has the same bytes
with any number of workers. A unit whose worker is lost goes back to the front of the queue. Nothing
here knows what a worker is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sized
from typing import Generic, TypeVar

from errata.core.errors import BadRun

U = TypeVar("U")
R = TypeVar("R")

TRIES = 3  # workers that a unit may end before the run gives up


class UnitQueue(Generic[U, R]):
    """Hands units out, takes results in. `ahead`: the most units between the first that is not
    written and one that is handed out, so that the results that wait are bounded. `units` are read
    as they are handed out, one ahead.
    """

    def __init__(self, units: Iterable[U], ahead: int) -> None:
        self._of = f" of {len(units)}" if isinstance(units, Sized) else ""
        self._left, self._ahead = enumerate(units), max(1, ahead)
        self._coming = next(self._left, None)
        self._held: dict[int, U] = {}
        self._written = 0
        self._back: deque[int] = deque()
        self._running: dict[Hashable, int] = {}
        self._waiting: dict[int, R] = {}
        self._ended: Counter[int] = Counter()

    @property
    def finished(self) -> bool:
        """Whether all units have been released."""
        return not self._held and self._coming is None

    @property
    def waiting(self) -> int:
        """Results that wait for one of an earlier unit."""
        return len(self._waiting)

    def take(self, worker: Hashable) -> U | None:
        """A unit for an idle worker, or None: there is none now."""
        if self._back:
            index = self._back.popleft()
        elif self._coming is not None and self._coming[0] < self._written + self._ahead:
            index, unit = self._coming
            self._held[index] = unit
            self._coming = next(self._left, None)
        else:
            return None
        self._running[worker] = index
        return self._held[index]

    def done(self, worker: Hashable, result: R) -> list[tuple[U, R]]:
        """The units that can be written now, in order, with their results."""
        self._waiting[self._running.pop(worker)] = result
        released = []
        while self._written in self._waiting:
            released.append((self._held.pop(self._written), self._waiting.pop(self._written)))
            self._written += 1
        return released

    def lost(self, worker: Hashable, reason: str) -> None:
        """The unit of a worker that is gone is handed out again. Raises BadRun after TRIES."""
        index = self._running.pop(worker, None)
        if index is None:
            return
        self._back.append(index)
        self._ended[index] += 1
        if self._ended[index] == TRIES:
            raise BadRun(
                f"unit {index + 1}{self._of} ended {TRIES} workers, the last one by: {reason}. "
                "What is written is kept; repeat the command to go on."
            )
