"""Finished runs over two settings at once: a heat map per score, and their CSV.

A run lies in the cell of its two values, passed or default; a cell that no run has is blank, and
null is the row or column `none`. Cells are means: their intervals are in the CSV, and each heat map
has a colour scale of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun, BadSpec
from errata.core.figure import Figure, Findings, Heat, Table
from errata.report.results import Setting, read_settings
from errata.report.sweeps import KINDS, SweepRun, config_of, named, table
from errata.report.tables import COLUMNS

Cells = Mapping[tuple[Any, Any], SweepRun]


def gridded(runs: Sequence[Path], down: str, across: str, scorer: str = "exact") -> Findings:
    """`down` and `across` are the settings of rows and columns.

    Raises BadSpec for a run without one of them and for runs that differ in more than these, BadRun
    for two runs in one cell.
    """
    settings = read_settings(runs)
    figures: list[Figure] = []
    tables: list[Table] = []
    for setting in settings:
        cells = _cells(setting, down, across)
        suffix = f"-{setting.slug}" if len(settings) > 1 else ""
        stem = f"grid-{down}-{across}{suffix}"
        figures.append(_figure(stem, setting, cells, down, across, scorer))
        tables.append(table(stem, list(cells.values()), scorer))
    return Findings(tuple(figures), tuple(tables))


def _cells(setting: Setting, down: str, across: str) -> dict[tuple[Any, Any], SweepRun]:
    places = []
    for result in setting.results:
        config = config_of(result)
        for name in (down, across):
            if name not in config:
                raise BadSpec(
                    f"{result.path}: '{result.editor}' has no setting '{name}', so it has no cell. "
                    f"Its settings: {', '.join(sorted(config)) or 'none'}."
                )
        at = _plain(config[down]), _plain(config[across])
        places.append(SweepRun(result, "", f"{down},{across}", at))
    cells: dict[tuple[Any, Any], SweepRun] = {}
    for p in named(places, (down, across)):
        if cells and p.series != (first := next(iter(cells.values()))).series:
            raise BadSpec(
                f"{first.result.path} is of {first.series} and {p.result.path} of {p.series}. A "
                "grid shows runs that differ in its two settings alone; give those of one."
            )
        if p.value in cells:
            raise BadRun(
                f"{cells[p.value].result.path} and {p.result.path} both have {down}={p.value[0]} "
                f"and {across}={p.value[1]}. Give one of them."
            )
        cells[p.value] = p
    return {at: replace(p, value=f"{_label(at[0])},{_label(at[1])}") for at, p in cells.items()}


def _figure(
    stem: str, setting: Setting, cells: Cells, down: str, across: str, scorer: str
) -> Figure:
    kinds = [k for k in KINDS if any(p.cell(k, scorer).value is not None for p in cells.values())]
    series = next(iter(cells.values())).series
    return Figure(
        stem,
        f"{down} by {across}: {series}",
        tuple(_heat(kind, cells, across, scorer) for kind in kinds),
        3,
        f"{setting.backbone}, {setting.benchmark}, {setting.protocol}, {scorer}: {setting.cases} "
        f"cases in {setting.units} units, {len(cells)} runs. Rows: {down}, columns: {across}. "
        "Means in per cent, each map on its own colour scale; intervals are in the CSV. n: cases.",
    )


def _heat(kind: str, cells: Cells, across: str, scorer: str) -> Heat:
    rows, columns = (sorted({at[i] for at in cells}, key=_order) for i in (0, 1))

    def percent(row: Any, column: Any) -> float:
        p = cells.get((row, column))
        value = None if p is None else p.cell(kind, scorer).value
        return float("nan") if value is None else 100 * value

    counts = sorted({p.cell(kind, scorer).n for p in cells.values()} - {0})
    return Heat(
        COLUMNS[kind][0],
        tuple(map(_label, rows)),
        tuple(map(_label, columns)),
        tuple(tuple(percent(r, c) for c in columns) for r in rows),
        axis=across,
        notes=("n = " + "–".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))),),
    )


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers in their order, then words, then null."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, "~" if value is None else str(value)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _label(value: Any) -> str:
    return "none" if value is None else str(value)
