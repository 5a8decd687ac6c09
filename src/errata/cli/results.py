"""`score`, `report` and `compare`: what runs found, without loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared import options as shared
from errata.core.errors import BadSpec, UnknownName

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `errata bench` wrote.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", help="Besides the usual ones; repeatable."),
]
Scorer = Annotated[str, typer.Option(help="The family of scores in the table: exact or token.")]


def score(
    run: Run, metric: Metrics = None, scorer: Scorer = "exact", as_json: shared.AsJson = False
) -> None:
    """Score a run again from its recorded answers."""
    from errata.evaluation.score import score_run

    scores = score_run(run, metric)
    if as_json:
        shared.print_json(scores)
        return
    _print_tables([run], scorer)
    print(f"scores written to {run / 'scores.json'}")


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
            metavar="DIR", help="Show what `errata analyze` or --plots wrote there; repeatable."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The report's heading.")] = None,
    scorer: Scorer = "exact",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING",
            help="Draw scores over this setting; repeatable. ROWS,COLUMNS: a grid of two settings.",
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where --vary writes SVG and CSV.")
    ] = None,
) -> None:
    """Print the tables of runs; write them as one HTML file, or plot them over a setting.

    Analyses go into the HTML file, behind the runs or alone; so do plots.
    """
    runs = runs or []
    if analysis and html is None:
        raise BadSpec("--analysis DIR goes into an HTML report. Give --html FILE too.")
    if bool(vary) != (plots is not None):
        raise BadSpec(
            "--vary SETTING and --plots DIR go together: what to draw over, and where to."
        )
    _grid(vary or [])
    if runs or not analysis:
        _print_tables(runs, scorer)
    shown = list(analysis or ())
    if vary and plots is not None:
        for path in _draw(runs, vary, scorer, plots):
            print(path)
        shown.append(plots)
    if html is not None:
        from errata.report.html import write_report

        made = write_report(runs, html, analyses=shown, title=title)
        print(f"report written to {made}")


def _grid(vary: list[str]) -> tuple[str, str] | None:
    """The two settings of a grid; None for settings one by one. Raises BadSpec."""
    pairs = [v.split(",") for v in vary if "," in v]
    if not pairs:
        return None
    if len(vary) > 1 or len(pairs[0]) != 2 or not all(pairs[0]):
        raise BadSpec(
            f"--vary {' '.join(vary)} is no grid. A grid has two settings, as in --vary "
            "text_layer,visual_layer, and stands alone."
        )
    return pairs[0][0], pairs[0][1]


def _draw(runs: list[Path], vary: list[str], scorer: str, plots: Path) -> list[Path]:
    from errata.figures.plots import write_findings
    from errata.report.grid import gridded
    from errata.report.results import read_settings
    from errata.report.sweeps import varied

    pair = _grid(vary)
    found = gridded(runs, *pair, scorer) if pair else varied(runs, vary, scorer)
    settings = read_settings(runs)
    about = {
        "schema": 1,
        "varied": vary,
        "runs": [str(r) for r in runs],
        "scorer": scorer,
        "backbone": ", ".join(dict.fromkeys(s.backbone for s in settings)),
        "benchmark": ", ".join(dict.fromkeys(s.benchmark for s in settings)),
    }
    name = f"{'grid' if pair else 'vary'}-{'-'.join(pair or vary)}"
    return write_findings(found, plots, name, about)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B")],
    metric: Metrics = None,
    as_json: shared.AsJson = False,
) -> None:
    """Compare two runs: paired differences, 95 % intervals."""
    from errata.evaluation.compare import compare_runs, compare_table

    result = compare_runs(run_a, run_b, metric)
    if as_json:
        shared.print_json(result)
    else:
        shared.console().print(compare_table(result))


def _print_tables(runs: list[Path], scorer: str) -> None:
    from errata.report.image_tables import studies
    from errata.report.image_tables import terminal_table as drawn_table
    from errata.report.results import read_settings
    from errata.report.tables import SCORERS, terminal_table

    if scorer not in SCORERS:
        raise UnknownName("scorer", scorer, SCORERS)
    settings = read_settings(runs)
    for setting in settings:
        shared.console().print(terminal_table(setting, scorer))
    for study in studies(settings):
        shared.console().print(drawn_table(study))
