"""`score`, `results`, `report` and `compare`: the scores of finished runs; no model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.printing import print_json, say, show_table
from errata.core.errors import BadSpec, UnknownName

if TYPE_CHECKING:
    from errata.report.results import Setting

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `errata bench` wrote.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="A metric besides the default ones; repeatable."),
]
Scorer = Annotated[
    str, typer.Option(help="Which scores the table shows: exact, token, or any other of the runs.")
]


def score(
    run: Run, metric: Metrics = None, scorer: Scorer = "exact", as_json: options.AsJson = False
) -> None:
    """Score a run again from its recorded answers."""
    from errata.evaluation.score import score_run

    scores = score_run(run, metric)
    if as_json:
        print_json(scores)
        return
    _print_tables([run], scorer)
    say(f"scores written to {run / 'scores.json'}")


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="All shards of a run (`errata bench --shard`)."),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the whole run.")],
    metric: Metrics = None,
    scorer: Scorer = "exact",
) -> None:
    """Put the shards of a run together and score it.

    The result equals the run of a single process, except for its times.
    """
    from errata.cli.shared.progress import reporting
    from errata.evaluation.bench import finish_run
    from errata.evaluation.distribute.merge import merge_shards

    merge_shards(shards, out)
    with reporting() as progress:
        finish_run(out, metric, progress=progress)
    _print_tables([out], scorer)
    say(f"run written to {out}; `errata report {out} --html FILE` shows it")


def results(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Scored runs.")],
    scorer: Scorer = "exact",
) -> None:
    """Print the tables of runs."""
    _print_tables(runs, scorer)


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN...]", help="Scored runs.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML file.")
    ] = None,
    analysis: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="A folder of `errata analyze` or --plots to show; repeatable."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The report's heading.")] = None,
    cases: Annotated[
        int,
        typer.Option(min=1, help="Most cases in the HTML file, to be searched and filtered."),
    ] = 48,
    scorer: Scorer = "exact",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Plot scores over this setting; repeatable. ROWS,COLUMNS: a grid of two settings.",
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where --vary writes SVG and CSV.")
    ] = None,
    root: options.Root = None,
) -> None:
    """Write the tables of runs as one HTML file; plot sweeps.

    The tables are printed too. `--vary` plots scores over a setting. Analyses and plots go into the
    HTML file, after the runs or alone.
    """
    runs = runs or []
    if html is not None:
        from errata.report.html import check_out

        check_out(html)
    if plots is not None:
        from errata.figures.plots import check_out as check_plots

        check_plots(plots, _plots_name(vary or []))
    if analysis and html is None:
        raise BadSpec("--analysis DIR goes into an HTML report. Give --html FILE too.")
    if bool(vary) != (plots is not None):
        raise BadSpec(
            "--vary SETTING and --plots DIR go together: the setting to plot over, and the folder."
        )
    _grid_names(vary or [])
    if runs or not analysis:
        _print_tables(runs, scorer)
    folders = list(analysis or ())
    if vary and plots is not None:
        for path in _plot(runs, vary, scorer, plots):
            say(path)
        folders.append(plots)
    if html is not None:
        from errata.report.html import write_report

        written = write_report(
            runs, html, analyses=folders, title=title, gallery=cases, root=root, scorer=scorer
        )
        say(f"report written to {written}")


def _grid_names(vary: list[str]) -> tuple[str, str] | None:
    """The two settings of a grid; None for settings one by one. Raises BadSpec."""
    pairs = [v.split(",") for v in vary if "," in v]
    if not pairs:
        return None
    if len(vary) > 1 or len(pairs[0]) != 2 or not all(pairs[0]):
        raise BadSpec(
            f"--vary {' '.join(vary)} is no grid. A grid has two settings, as in --vary "
            "text_layer,visual_layer, and no other --vary."
        )
    return pairs[0][0], pairs[0][1]


def _plot(runs: list[Path], vary: list[str], scorer: str, plots: Path) -> list[Path]:
    from errata.figures.plots import write_findings
    from errata.report.results import read_settings
    from errata.report.sweeps import grid, sweep

    pair = _grid_names(vary)
    settings = read_settings(runs)
    _check_scorer(settings, scorer)
    findings = grid(runs, *pair, scorer) if pair else sweep(runs, vary, scorer)
    about = {
        "schema": 1,
        "varied": vary,
        "runs": [str(r) for r in runs],
        "scorer": scorer,
        "backbone": ", ".join(dict.fromkeys(s.backbone for s in settings)),
        "benchmark": ", ".join(dict.fromkeys(s.benchmark for s in settings)),
    }
    return write_findings(findings, plots, _plots_name(vary), about)


def _plots_name(vary: list[str]) -> str:
    pair = _grid_names(vary)
    return f"{'grid' if pair else 'vary'}-{'-'.join(pair or vary)}"


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B")],
    metric: Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare two runs: paired differences, 95 % intervals."""
    from errata.evaluation.compare import compare_runs, compare_table

    result = compare_runs(run_a, run_b, metric)
    if as_json:
        print_json(result)
    else:
        show_table(compare_table(result))


def _print_tables(runs: list[Path], scorer: str) -> None:
    from errata.cli.shared.tables import print_tables
    from errata.report.results import read_settings

    settings = read_settings(runs)
    _check_scorer(settings, scorer)
    print_tables(settings, scorer)


def _check_scorer(settings: list[Setting], scorer: str) -> None:
    """Raises UnknownName for a scorer that none of the runs has."""
    from errata.report.results import scorers_of

    names = [s.name for s in scorers_of(settings)]
    if scorer not in names:
        raise UnknownName("scorer of these runs", scorer, names)
