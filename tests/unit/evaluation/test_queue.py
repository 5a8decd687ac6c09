"""The queue of units: every unit once and in order, whatever workers do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.core.errors import BadRun, BadSpec
from errata.evaluation.distribute.queue import TRIES, UnitQueue
from errata.evaluation.distribute.ray_workers import _connect


@settings(max_examples=200, deadline=None)
@given(
    units=st.integers(0, 30),
    workers=st.integers(1, 5),
    ahead=st.integers(0, 10),
    moves=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=300),
)
def test_every_unit_is_written_once_and_in_order(units, workers, ahead, moves):
    queue: UnitQueue[int, str] = UnitQueue(range(units), ahead)
    busy: dict[int, int] = {}
    written, losses = list[tuple[int, str]](), dict[int, int]()
    plan = [(w % workers, fails) for w, fails in moves]
    plan += [(w % workers, False) for w in range((units + workers) * workers * 4)]
    for worker, fails in plan:
        if worker not in busy:
            unit = queue.take(worker)
            if unit is not None:
                assert unit < len(written) + max(1, ahead), "the results that wait are bounded"
                busy[worker] = unit
        elif fails and losses.get(busy[worker], 0) < TRIES - 1:
            unit = busy.pop(worker)
            losses[unit] = losses.get(unit, 0) + 1
            queue.lost(worker, "killed")
        else:
            written += queue.done(worker, f"r{busy.pop(worker)}")
        assert len(set(busy.values())) == len(busy), "no unit runs twice at a time"
    assert written == [(u, f"r{u}") for u in range(units)]
    assert queue.finished and not queue.waiting


def test_a_unit_that_ends_its_workers_ends_the_run():
    queue: UnitQueue[str, int] = UnitQueue(["a", "b"], 4)
    for n in range(TRIES):
        assert queue.take(n) == "a"
        if n < TRIES - 1:
            queue.lost(n, "no memory")
    with pytest.raises(BadRun, match=rf"unit 1 of 2 ended {TRIES} workers, .*no memory"):
        queue.lost(TRIES - 1, "no memory")


def test_units_are_made_as_they_are_handed_out():
    made = list[int]()

    def units() -> Iterator[int]:
        for n in range(5):
            made.append(n)
            yield n

    queue: UnitQueue[int, int] = UnitQueue(units(), 2)
    assert queue.take("a") == 0 and made == [0, 1] and not queue.finished
    for n in range(5):
        assert queue.done("a", n) == [(n, n)]
        assert queue.finished == (n == 4) == (queue.take("a") is None)


def test_the_loss_of_an_idle_worker_changes_nothing():
    queue: UnitQueue[str, int] = UnitQueue(["a"], 4)
    queue.lost("w", "killed")
    assert queue.take("w") == "a" and queue.take("v") is None


def test_a_cluster_that_does_not_start_is_one_line():
    class Slow:
        ended = False

        def is_initialized(self) -> bool:
            return False

        def init(self, **_: Any) -> None:
            raise Exception("The current node timed out\nduring startup.")

        def shutdown(self) -> None:
            self.ended = True

    ray = Slow()
    with pytest.raises(BadSpec, match="no Ray cluster at 'local': The current node timed out"):
        _connect(ray, "local", 2)
    assert ray.ended
