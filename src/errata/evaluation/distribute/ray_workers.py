"""Workers on a Ray cluster (extra `ray`): actors with a model each run the units of a run.

The calling process plans and writes; a worker gets a unit and gives its answers back. A worker that
dies is replaced and its unit is run again, so nothing is lost or written twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.core.errors import BadSpec, UserError, one_line
from errata.evaluation.distribute.queue import UnitQueue

if TYPE_CHECKING:
    from errata.core.measure.protocol import Unit
    from errata.core.model.backbone import Backbone
    from errata.evaluation.runner import Runner

AHEAD = 8  # units per worker that may wait for an earlier one

#: what `Runner.run` gives
Result = tuple[Any, Any, Any]


@dataclass(frozen=True)
class RayWorkers:
    """Where the units of a run are run.

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
        ray = _ray()
        mine = _connect(ray, self.address, self.count)
        try:
            yield from self._run(ray, (self.load, make, fingerprint, keep), units)
        finally:
            if mine:
                ray.shutdown()

    def _run(self, ray: Any, parts: Any, units: Sequence[Unit]) -> Iterator[tuple[Unit, Result]]:
        count = self.count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(count, max(1, len(units)))
        shared = ray.put(parts)
        actor = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(_Worker)
        queue: UnitQueue[Unit, Result] = UnitQueue(units, AHEAD * count)
        workers = {i: actor.remote(shared) for i in range(count)}
        running: dict[Any, int] = {}
        idle = set(workers)
        while not queue.finished:
            for i in sorted(idle):
                unit = queue.take(i)
                if unit is None:
                    break
                running[workers[i].run.remote(unit)] = i
                idle.discard(i)
            ready, _ = ray.wait(list(running))
            for answer in ready:
                i = running.pop(answer)
                idle.add(i)
                try:
                    result = ray.get(answer)
                except ray.exceptions.RayActorError as e:
                    queue.lost(i, one_line(str(e))[:200])
                    workers[i] = actor.remote(shared)
                except ray.exceptions.RayTaskError as e:
                    raise e.cause if isinstance(e.cause, UserError) else e from None
                else:
                    yield from queue.done(i, result)


class _Worker:
    """One process with a model of its own."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        import torch

        load, make, fingerprint, self.keep = parts
        if "OMP_NUM_THREADS" in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        model = load()
        self.problem = ""
        if model.fingerprint() != fingerprint:
            self.problem = (
                f"a worker loaded another model ({model.fingerprint()[:12]}) than the one that "
                f"planned the run ({fingerprint[:12]}). Give every machine the same model."
            )
        self.runner = make(model)

    def run(self, unit: Unit) -> Result:
        if self.problem:
            from errata.core.errors import BadRun

            raise BadRun(self.problem)
        answers, timing, lanes = self.runner.run(unit)
        return answers, timing, lanes if self.keep else []


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
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise BadSpec(
            f"no Ray cluster at {address[:80]!r}: {one_line(str(e))[:200]}. Give the address of a "
            "cluster, such as ray://head:10001, or `local`."
        ) from None
    return True
