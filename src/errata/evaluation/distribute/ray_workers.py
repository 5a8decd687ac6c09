"""Workers on a Ray cluster (extra `ray`): actors with a model each run units of work.

The calling process plans and writes; a worker gets a unit (of a run, or a chunk of a preparation)
and gives its result back. A worker that dies is replaced and its unit is run again, so nothing is
lost or written twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from errata.core.errors import BadSpec, UserError, one_line
from errata.evaluation.distribute.queue import UnitQueue

if TYPE_CHECKING:
    from errata.core.measure.protocol import Unit
    from errata.core.model.backbone import Backbone
    from errata.evaluation.runner import Runner

AHEAD = 8  # units per worker that may wait for an earlier one
AHEAD_CHUNKS = 2  # the same for chunks of a preparation: their results may be large

U = TypeVar("U")
R = TypeVar("R")

#: what `Runner.run` gives
Result = tuple[Any, Any, Any]


@dataclass(frozen=True)
class RayWorkers:
    """Where the units of a run, or the chunks of a preparation, are run.

    load: makes the model in each worker; it is pickled. address: of a Ray cluster, `local` for
    processes on this machine. count: workers, 0 = one per CPU (`local`: per CPU of this machine).
    gpus: GPUs that each worker reserves, may be a fraction.
    """

    load: Callable[[], Backbone]
    address: str = "local"
    count: int = 0
    gpus: float = 0.0

    def run(
        self,
        make: Callable[[Backbone], Runner],
        units: Sequence[Unit],
        fingerprint: str,
        keep: bool,
    ) -> Iterator[tuple[Unit, Result]]:
        """The units with their results, in order. Raises what a unit raises, and BadRun.

        make: the runner of a model; it is pickled. fingerprint: that of the model that planned.
        keep: whether the patches come back too.
        """
        with self.pool(fingerprint) as pool:
            yield from pool.each(partial(_runner, make, keep), units, AHEAD)

    @contextmanager
    def pool(self, fingerprint: str) -> Iterator[RayPool]:
        """Workers that are kept for several maps. fingerprint: of the model that they must have."""
        ray = _ray()
        mine = _connect(ray, self.address, self.count)
        try:
            count = self.count or max(1, int(ray.cluster_resources().get("CPU", 1)))
            actor = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(_Worker)
            model = ray.put((self.load, fingerprint))
            yield RayPool(ray, lambda: actor.remote(model), count)
        finally:
            if mine:
                ray.shutdown()


class RayPool:
    """Up to `count` workers, each started when there is a unit for it."""

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray, self._start, self._count = ray, start, count
        self._workers: dict[int, Any] = {}

    def map(self, task: Callable[[Backbone, U], R], chunks: Iterable[U]) -> Iterator[tuple[U, R]]:
        """The chunks with what `task` makes of them, in order. Raises what it raises, and BadRun.

        For `PrepareContext.workers`.
        """
        yield from self.each(partial(_bound, task), chunks, AHEAD_CHUNKS)

    def each(
        self, make: Callable[[Backbone], Callable[[U], R]], units: Iterable[U], ahead: int
    ) -> Iterator[tuple[U, R]]:
        """The units with their results, in order. make: called once in each worker."""
        ray = self._ray
        shared = ray.put(make)
        queue: UnitQueue[U, R] = UnitQueue(units, ahead * self._count)
        running: dict[Any, int] = {}
        idle = set(range(self._count))
        while not queue.finished:
            for i in sorted(idle):
                unit = queue.take(i)
                if unit is None:
                    break
                if i not in self._workers:
                    self._workers[i] = self._start()
                # in a list, it is not read anew for every unit
                running[self._workers[i].run.remote([shared], unit)] = i
                idle.discard(i)
            ready, _ = ray.wait(list(running))
            for answer in ready:
                i = running.pop(answer)
                idle.add(i)
                try:
                    result = ray.get(answer)
                except ray.exceptions.RayActorError as e:
                    queue.lost(i, one_line(str(e))[:200])
                    del self._workers[i]
                except ray.exceptions.RayTaskError as e:
                    raise e.cause if isinstance(e.cause, UserError) else e from None
                else:
                    yield from queue.done(i, result)


class _Worker:
    """One process with a model of its own."""

    def __init__(self, parts: tuple[Callable[[], Backbone], str]) -> None:
        import torch

        load, fingerprint = parts
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.model = load()
        self.problem = ""
        if self.model.fingerprint() != fingerprint:
            self.problem = (
                f"a worker loaded another model ({self.model.fingerprint()[:12]}) than the one "
                f"that the command started with ({fingerprint[:12]}). Give every machine the same "
                "model."
            )
        self.shared: Any = None

    def run(self, shared: list[Any], unit: Any) -> Any:
        if self.problem:
            from errata.core.errors import BadRun

            raise BadRun(self.problem)
        if self.shared != shared[0]:
            import ray

            self.work = ray.get(shared[0])(self.model)
            self.shared = shared[0]
        return self.work(unit)


def _bound(task: Callable[[Backbone, U], R], model: Backbone) -> Callable[[U], R]:
    return partial(task, model)


def _runner(
    make: Callable[[Backbone], Runner], keep: bool, model: Backbone
) -> Callable[[Unit], Result]:
    runner = make(model)

    def run(unit: Unit) -> Result:
        answers, timing, lanes = runner.run(unit)
        return answers, timing, lanes if keep else []

    return run


def _ray() -> Any:
    try:
        import ray
    except ImportError as e:
        raise BadSpec("--ray needs Ray: pip install 'errata[ray]'.") from e
    return ray


def _connect(ray: Any, address: str, count: int) -> bool:
    """Whether a connection was made; False if this process has one."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": count or None}
    if address != "local":
        options = {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except Exception as e:  # a node that does not start in time is an Exception of no class
        ray.shutdown()
        reason = one_line(str(e))[:200].rstrip(".")
        raise BadSpec(
            f"no Ray cluster at {address[:80]!r}: {reason}. Give the address of a "
            "cluster, such as ray://head:10001, or `local`; if a node was too slow, try again."
        ) from None
    return True
