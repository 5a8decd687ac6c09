"""The options `--ray` and `--workers`: other processes that share the work."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from errata.core.errors import BadSpec

if TYPE_CHECKING:
    from errata.cli.shared.model import ModelOptions
    from errata.core.model.backbone import Backbone
    from errata.evaluation.distribute.ray_workers import RayPool, RayWorkers

Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Run on a Ray cluster; `local`: on this machine."),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Workers with --ray; 0: one per CPU of the cluster.")
]


def workers_of(model: ModelOptions, ray: str | None, count: int) -> RayWorkers | None:
    """Where the work is done; None for this process. Raises BadSpec."""
    if ray is None:
        if count:
            raise BadSpec("--workers counts those of --ray. Give --ray ADDRESS, or --ray local.")
        return None
    from errata.evaluation.distribute.ray_workers import RayWorkers

    return RayWorkers(model.load, ray, count)


def pooled(stack: ExitStack, workers: RayWorkers | None, bb: Backbone) -> RayPool | None:
    """The workers of a preparation, until the stack is left."""
    return None if workers is None else stack.enter_context(workers.pool(bb.fingerprint()))
