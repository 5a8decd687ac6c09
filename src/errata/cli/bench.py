"""`bench`: measure one editor on one benchmark under one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import say
from errata.cli.shared.workers import Ray, Workers, workers_of

ProtocolName = Annotated[
    str,
    typer.Option(
        help="one_step, batch:16, sequential:10, cross_task:10, memory:240; direct:50x10, "
        "reasoning:prepend:50x10 (replace, prepend, instruct)."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Run every N-th unit only, from the I-th on, for `errata merge`.",
    ),
]

Metrics = Annotated[
    list[str] | None, typer.Option(help="A metric in addition to the default ones; repeatable.")
]
Forced = Annotated[
    bool,
    typer.Option(
        "--forced",
        help="Teacher forcing alone: no answer is generated after an edit. Scores token, "
        "first_token and probability.",
    ),
]


@takes_model(draws=True, batches=True)
def bench(
    model: ModelOptions,
    editor: options.EditorName,
    benchmark: Annotated[str, typer.Option(help="name[:task[+task]][@split][/variant].")],
    protocol: ProtocolName,
    out: Annotated[
        Path,
        typer.Option(metavar="RUN", help="Run folder; an unfinished run in it is resumed."),
    ],
    preset: options.Preset = None,
    settings: options.Settings = None,
    state: options.StateDir = None,
    scope: options.ScopeName = None,
    scope_set: options.ScopeSettings = None,
    scope_state: options.ScopeState = None,
    seed: options.Seed = 0,
    limit: options.Limit = None,
    rows: options.RowsOption = 16,
    metric: Metrics = None,
    forced: Forced = False,
    keep_patches: Annotated[
        bool, typer.Option("--keep-patches", help="Also save every patch, in RUN/patches.")
    ] = False,
    image_seeds: Annotated[
        int, typer.Option("--image-seeds", min=1, help="Images per prompt (protocols that draw).")
    ] = 4,
    shard: Shard = None,
    ray: Ray = None,
    workers: Workers = 0,
    root: options.Root = None,
) -> None:
    """Measure one editor on a benchmark: edit, ask, score.

    Asks the probes of every case before and after the edit and scores the answers.

    Repeat the same command to resume a killed run; raise --limit to add cases to a run.
    """
    spec, order = check_names(benchmark, protocol, metric)
    from errata.evaluation.distribute.shards import RunShard
    from errata.evaluation.run_folder import check_out

    check_out(out, editor=editor, benchmark=spec, protocol=order, seed=seed)
    if shard is not None:
        RunShard.parse(shard)
    elsewhere = workers_of(model, ray, workers)
    ed = options.make_editor(editor, preset, settings)
    prepared = options.load_state(state, ed)
    ed = options.behind(ed, options.make_scope(scope, scope_set, scope_state))
    bb = model.load()
    from errata.cli.shared.progress import reporting
    from errata.cli.shared.tables import print_tables
    from errata.evaluation.bench import bench as execute
    from errata.report.results import read_settings

    with reporting() as progress:
        run = execute(
            bb,
            ed,
            benchmark,
            protocol,
            out,
            seed=seed,
            limit=limit,
            rows=rows,
            root=root,
            state=prepared,
            metrics=metric,
            forced=forced,
            keep_patches=keep_patches,
            image_seeds=image_seeds,
            shard=shard,
            workers=elsewhere,
            progress=progress,
        )
    if shard is not None:
        say(f"shard {shard} written to {run}; `errata merge` puts all shards together")
        return
    print_tables(read_settings([run]))
    say(f"run written to {run}; `errata report {run} --html FILE` shows it")


def check_names(benchmark: str, protocol: str, metrics: list[str] | None) -> tuple[str, str]:
    """Benchmark and protocol in full. Raises BadSpec or UnknownName before a model is loaded."""
    from errata.core import registry
    from errata.core.measure.benchmark import BenchmarkSpec

    spec = BenchmarkSpec.parse(benchmark)
    name, _, argument = protocol.partition(":")
    order = registry.load("protocols", name)(argument)
    for metric in metrics or ():
        registry.load("metrics", metric)
    return str(spec), str(order.spec)
