"""Scores of finished runs over settings of their editors: figures and CSV tables.

`sweep` draws scores over one or several settings, one at a time. A run lies at the value that it
was passed; a run that was passed none of the settings lies at the (default) value of the first one
that its editor has; an editor that has none of them is a horizontal line. Runs whose other settings
are equal make one series. Numbers make lines, words among numbers (`alpha=query`) horizontal lines,
words alone bars. A setting that was passed as null is switched off: `text_layer=3,
visual_layer=null` lies at 3 of the first.

`grid` draws scores over two settings at once: a heat map per column of scores. A run lies in the
cell of its two values, passed or default; null is the row or column `none`, and a cell without a
run is blank. Each heat map has its own colour scale; the intervals are in the CSV.

Intervals are those of each run alone; `errata compare` gives paired differences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core import registry
from errata.core.config import current_names
from errata.core.errors import BadRun, BadSpec
from errata.core.figure import (
    Bar,
    Bars,
    Figure,
    Findings,
    Heat,
    Level,
    Line,
    Lines,
    Panel,
    Table,
    Tone,
    Value,
)
from errata.core.formats.counts import counted
from errata.core.kinds import ScoreColumn
from errata.report.charts import tone_of, value_of
from errata.report.results import Result, Setting, read_settings
from errata.report.tables import ScoreCell, cell_of, columns_of

TONES: tuple[Tone, ...] = ("changes", "stays", "right", "wrong", "soft")


@dataclass(frozen=True)
class SweepRun:
    """One run with its series and its value of the setting `name` ("" where it has none)."""

    result: Result
    series: str
    name: str
    value: Any

    @property
    def number(self) -> float | None:
        plain = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return float(self.value) if plain else None

    @property
    def label(self) -> str:
        return f"{self.series}, {self.name}={self.value}" if self.name else self.series

    def cell(self, column: ScoreColumn, scorer: str) -> ScoreCell:
        return cell_of(self.result.metrics, f"{column.name}.{scorer}")


GridCells = Mapping[tuple[Any, Any], SweepRun]
"""(value of the row setting, value of the column setting) -> run"""


def sweep(runs: Sequence[Path], names: Sequence[str], scorer: str = "exact") -> Findings:
    """Scores over the settings called `names`: a figure and a table per benchmark and protocol.

    Raises BadSpec for a setting that no run has, BadRun for two runs with the same values.
    """
    settings, names = _under_present_names(read_settings(runs), names)
    names = list(dict.fromkeys(names))
    figures: list[Figure] = []
    tables: list[Table] = []
    for setting in settings:
        swept = _sweep_runs(setting, names)
        stem = f"vary-{'-'.join(names)}{_suffix(setting, settings)}"
        figures.append(_sweep_figure(stem, setting, swept, names, scorer))
        tables.append(_table(stem, swept, scorer))
    return Findings(tuple(figures), tuple(tables))


def grid(runs: Sequence[Path], down: str, across: str, scorer: str = "exact") -> Findings:
    """Scores over the settings `down` (rows) and `across` (columns).

    Raises BadSpec for a run without one of them and for runs that differ in other settings too,
    BadRun for two runs in one cell.
    """
    settings, (down, across) = _under_present_names(read_settings(runs), (down, across))
    figures: list[Figure] = []
    tables: list[Table] = []
    for setting in settings:
        cells = _grid_cells(setting, down, across)
        stem = f"grid-{down}-{across}{_suffix(setting, settings)}"
        figures.append(_grid_figure(stem, setting, cells, down, across, scorer))
        tables.append(_table(stem, list(cells.values()), scorer))
    return Findings(tuple(figures), tuple(tables))


def _under_present_names(
    settings: Sequence[Setting], names: Sequence[str]
) -> tuple[list[Setting], list[str]]:
    """The runs and the names with renamed settings under the names that they have today.

    Editors, which load torch, are only asked where a run lacks one of the names.
    """
    results = [result for setting in settings for result in setting.results]
    if all(name in _config(result) for result in results for name in names):
        return list(settings), list(names)
    editors = {r.editor for r in results} & set(registry.names("editors"))
    configs = {name: registry.load("editors", name).Config for name in sorted(editors)}
    today = dict(zip(names, names, strict=True))
    for config in configs.values():
        for name in names:
            (present,) = current_names(config, {name: None})
            today[name] = present if present != name else today[name]

    def renamed(result: Result) -> Result:
        config = configs.get(result.editor)
        if config is None:
            return result
        fields = {
            key: current_names(config, found)
            for key in ("config", "arguments")
            if isinstance(found := result.manifest.get(key), Mapping)
        }
        return replace(result, manifest={**result.manifest, **fields})

    told = [replace(s, results=tuple(map(renamed, s.results))) for s in settings]
    return told, [today[name] for name in names]


def _suffix(setting: Setting, settings: Sequence[Setting]) -> str:
    return f"-{setting.slug}" if len(settings) > 1 else ""


def _config(result: Result) -> Mapping[str, Any]:
    config = result.manifest.get("config")
    return config if isinstance(config, Mapping) else {}


def _columns(runs: Sequence[SweepRun], scorer: str) -> list[ScoreColumn]:
    """The columns with values, mean5 first: it is the score that most sweeps are read for."""
    columns = columns_of([run.result for run in runs], scorer)
    return sorted(columns, key=lambda column: column.name != "mean5")


def _with_series(runs: Sequence[SweepRun], names: Sequence[str]) -> list[SweepRun]:
    """The runs with a label per series: the editor, and the settings in which its series differ."""

    def rest(run: SweepRun) -> dict[str, Any]:
        return {k: v for k, v in _config(run.result).items() if k not in names}

    labelled = []
    for run in runs:
        others = [rest(other) for other in runs if other.result.editor == run.result.editor]
        mine = rest(run)
        different = [k for k in mine if len({json.dumps(o.get(k)) for o in others}) > 1]
        words = ", ".join(f"{k}={mine[k]}" for k in different)
        labelled.append(replace(run, series=f"{run.result.editor} {words}".strip()))
    settings: dict[str, set[str]] = {}
    for run in labelled:
        settings.setdefault(run.series, set()).add(run.name)
    return [
        replace(run, series=f"{run.series} {run.name}") if len(settings[run.series]) > 1 else run
        for run in labelled
    ]


def _caption(setting: Setting, scorer: str) -> str:
    return (
        f"{setting.backbone}, {setting.benchmark}, {setting.protocol}, {scorer}: "
        f"{counted(setting.cases, 'case')} in {counted(setting.units, 'unit')}"
    )


def _count(column: ScoreColumn, runs: Sequence[SweepRun], scorer: str) -> tuple[str, ...]:
    """The note with the number of scored cases, as a range where runs differ."""
    counts = sorted({run.cell(column, scorer).n for run in runs} - {0})
    return ("n = " + "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))),)


def _table(stem: str, runs: Sequence[SweepRun], scorer: str) -> Table:
    columns = (
        *("series", "editor", "setting", "setting_value", "kind", "scorer"),
        *("value", "low", "high", "n", "units", "unscored", "run"),
    )
    rows = []
    for run in runs:
        for column in _columns(runs, scorer):
            c = run.cell(column, scorer)
            if c.value is not None:
                rows.append(
                    (
                        *(run.series, run.result.editor, run.name, run.value, column.name, scorer),
                        *(c.value, c.low, c.high, c.n, c.units, c.unscored, run.result.path.name),
                    )
                )
    return Table(stem, columns, rows)


# -- one setting at a time --------------------------------------------------------------------


def _sweep_runs(setting: Setting, names: Sequence[str]) -> list[SweepRun]:
    runs = [_sweep_run(result, names) for result in setting.results]
    if not any(run.name for run in runs):
        existing = sorted({name for result in setting.results for name in _config(result)})
        raise BadSpec(
            f"no editor of these runs has a setting {' or '.join(repr(n) for n in names)}. "
            f"Theirs: {', '.join(existing) or 'none'}."
        )
    runs = _with_series(runs, names)
    first: dict[tuple[str, str, str], SweepRun] = {}
    for run in runs:
        same = first.setdefault((run.series, run.name, str(run.value)), run)
        if same is not run:
            raise BadRun(
                f"{same.result.path} and {run.result.path} are both {run.label}, so they cannot be "
                "told apart in a plot. Give one of them."
            )
    return runs


def _sweep_run(result: Result, names: Sequence[str]) -> SweepRun:
    config = _config(result)
    passed = [name for name in names if result.arguments.get(name) is not None]
    if len(passed) > 1:
        raise BadSpec(
            f"{result.path} was passed {' and '.join(passed)}, so it lies at no single place. Vary "
            "one of them at a time."
        )
    name = next(iter(passed or [name for name in names if name in config]), "")
    return SweepRun(result, "", name, config.get(name, result.arguments.get(name)))


def _sweep_figure(
    stem: str, setting: Setting, runs: Sequence[SweepRun], names: Sequence[str], scorer: str
) -> Figure:
    numbers = any(run.number is not None for run in runs)
    axis = " / ".join(n for n in names if any(run.name == n for run in runs))
    panels = tuple(
        _lines(column, runs, scorer, axis) if numbers else _bars(column, runs, scorer)
        for column in _columns(runs, scorer)
    )
    return Figure(
        stem,
        f"{axis}: {', '.join(dict.fromkeys(run.result.editor for run in runs))}",
        panels,
        3,
        f"{_caption(setting, scorer)}. Percentages with 95 % intervals of each run "
        "alone; n: scored cases.",
    )


def _lines(column: ScoreColumn, runs: Sequence[SweepRun], scorer: str, axis: str) -> Panel:
    """Runs with a number make lines, the others levels."""
    labels = list(dict.fromkeys(r.series if r.number is not None else r.label for r in runs))
    if len(labels) > len(TONES):
        raise BadSpec(
            f"these runs make {len(labels)} series ({'; '.join(labels[:3])}; ...), a plot shows "
            f"{len(TONES)}. Give fewer runs, or vary what tells them apart."
        )
    tone = dict(zip(labels, TONES, strict=False))
    lines: dict[str, list[tuple[float, Value]]] = {}
    levels = []
    for run in runs:
        value = value_of(run.cell(column, scorer))
        if value is not None and run.number is not None:
            lines.setdefault(run.series, []).append((run.number, value))
        elif value is not None:
            levels.append(Level(run.label, value, tone[run.label]))
    return Lines(
        column.heading,
        tuple(Line(name, tuple(points), tone[name]) for name, points in lines.items()),
        tuple(levels),
        axis,
        _count(column, runs, scorer),
    )


def _bars(column: ScoreColumn, runs: Sequence[SweepRun], scorer: str) -> Panel:
    several = len({run.series for run in runs}) > 1
    rows = tuple(
        Bar(
            run.label if several or not run.name else f"{run.value}",
            value_of(run.cell(column, scorer)),
            tone_of(column),
        )
        for run in runs
    )
    return Bars(column.heading, rows, notes=_count(column, runs, scorer))


# -- two settings at once ---------------------------------------------------------------------


def _grid_cells(setting: Setting, down: str, across: str) -> GridCells:
    runs = []
    for result in setting.results:
        config = _config(result)
        for name in (down, across):
            if name not in config:
                raise BadSpec(
                    f"{result.path}: '{result.editor}' has no setting '{name}', so it has no cell. "
                    f"Its settings: {', '.join(sorted(config)) or 'none'}."
                )
        at = _plain(config[down]), _plain(config[across])
        runs.append(SweepRun(result, "", f"{down},{across}", at))
    cells: dict[tuple[Any, Any], SweepRun] = {}
    for run in _with_series(runs, (down, across)):
        if cells and run.series != (first := next(iter(cells.values()))).series:
            raise BadSpec(
                f"{first.result.path} is of {first.series} and {run.result.path} of {run.series}. "
                "A grid shows runs that differ in its two settings alone; give those of one."
            )
        if run.value in cells:
            raise BadRun(
                f"{cells[run.value].result.path} and {run.result.path} both have "
                f"{down}={run.value[0]} and {across}={run.value[1]}. Give one of them."
            )
        cells[run.value] = run
    return {at: replace(run, value=f"{_label(at[0])},{_label(at[1])}") for at, run in cells.items()}


def _grid_figure(
    stem: str, setting: Setting, cells: GridCells, down: str, across: str, scorer: str
) -> Figure:
    runs = list(cells.values())
    return Figure(
        stem,
        f"{down} by {across}: {runs[0].series}",
        tuple(_heat(column, cells, across, scorer) for column in _columns(runs, scorer)),
        3,
        f"{_caption(setting, scorer)}, {counted(len(cells), 'run')}. Rows: {down}, columns: "
        f"{across}. Means in per cent, each map on its own colour scale; intervals are in the "
        "CSV. n: cases.",
    )


def _heat(column: ScoreColumn, cells: GridCells, across: str, scorer: str) -> Heat:
    rows, columns = (sorted({at[i] for at in cells}, key=_order) for i in (0, 1))

    def percent(at: tuple[Any, Any]) -> float:
        value = cells[at].cell(column, scorer).value if at in cells else None
        return float("nan") if value is None else 100 * value

    return Heat(
        column.heading,
        tuple(map(_label, rows)),
        tuple(map(_label, columns)),
        tuple(tuple(percent((r, c)) for c in columns) for r in rows),
        axis=across,
        notes=_count(column, list(cells.values()), scorer),
    )


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers in their order, then words, then null."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, "~" if value is None else str(value)


def _plain(value: Any) -> Any:
    """A value that can be a key; lists as JSON text."""
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _label(value: Any) -> str:
    return "none" if value is None else str(value)
