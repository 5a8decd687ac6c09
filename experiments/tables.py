"""Tables of docs/results: from run folders to a CSV file, from the CSV file to the page.

From the repository root:

    python experiments/tables.py RUN [RUN ...]            prints one row per run
    python experiments/tables.py RUN+RUN+RUN [...]        one row of several training seeds
    python experiments/tables.py --pairs RUN RUN [...]    paired differences between all runs
    python experiments/tables.py --pairs RUN [...] --against RUN --columns mean5 mean6
    python experiments/tables.py --fill docs/results/single-edits.md    every table of a page

A table on a page stands between `<!-- tables.py --csv data/NAME.csv ARGUMENTS -->` and
`<!-- end -->`. `--fill` writes the CSV file from the runs that ARGUMENTS name, and then the table
from the CSV file. The rows of runs that are not in this checkout stay as they are. A table without
runs has a CSV file that was written by another script or by hand; the page says which.
`--summary data/NAME.csv:COLUMN ...` instead of `--csv` puts columns of several CSV files together.

In a CSV file a number `x` with a 95 % interval takes three columns: `x`, `x_low`, `x_high`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.evaluation.compare import compare_runs
from errata.evaluation.statistics.seeds import combine_runs, compare_seeds

#: rows of a CSV file; all rows have the same keys
Table = list[dict[str, str]]

BASE = "(base accuracy)"
COLUMNS = (
    "reliability",
    "t_generality",
    "m_generality",
    "t_locality",
    "m_locality",
    "near_locality",
    "portability",
    "retention",
    "mean5",
    "mean6",
    "joint",
)
PAIR_COLUMNS = (
    "t_generality/seen",
    "t_generality/unseen",
    "m_generality",
    "near_locality/near1",
    "near_locality/near2",
    "near_locality/same_image",
    "near_locality/same_answer",
    "near_locality/neighbour",
)


def percent(
    column: str, value: float | None, ci95: Sequence[float] | None, style: str = ".1f"
) -> dict[str, str]:
    """The three cells of a share and its interval, in per cent; empty where there is no score."""
    numbers = (value, *(ci95 if ci95 and value is not None else (None, None)))
    keys = (column, f"{column}_low", f"{column}_high")
    return {
        key: "" if number is None else f"{100 * number:{style}}"
        for key, number in zip(keys, numbers, strict=True)
    }


def score_cells(metrics: dict[str, Any], key: str, column: str) -> dict[str, str]:
    """The three cells of an entry of scores.json."""
    entry = metrics.get(key) or {"value": None}
    return percent(column, entry["value"], entry.get("ci95"))


def score_table(runs: Sequence[Path], scorer: str, wanted: Sequence[str], by: str) -> Table:
    """The base accuracy, then one row per run. A column that no run has is left out.

    A row of several training seeds (`RUN+RUN+RUN`) has the mean over its runs.
    """
    scores = [_metrics(run) for run in runs]
    columns = [
        c
        for c in wanted
        if any((m.get(f"{c}.{scorer}") or {}).get("value") is not None for m in scores)
    ]
    base = {by: BASE, "n": "", "sequences": ""}
    for c in columns:
        first_run = _json(_seeds(runs[0])[0], "scores")["metrics"]
        base |= percent(c, (first_run.get(f"{c}.{scorer}") or {}).get("base"), None)
    table = [base | {"s/edit": ""}]
    for run, metrics in zip(runs, scores, strict=True):
        first = metrics[f"reliability.{scorer}"]
        sequences = str(first["units"]) if first["units"] != first["n"] else ""
        row = {by: _label(run, by), "n": str(first["n"]), "sequences": sequences}
        for c in columns:
            row |= score_cells(metrics, f"{c}.{scorer}", c)
        edits = [_json(one, "timing")["phases"]["edit"] for one in _seeds(run)]
        seconds, count = (sum(e[k] for e in edits) for k in ("seconds", "count"))
        table.append(row | {"s/edit": f"{seconds / max(1, count):.3f}"})
    return table


def pair_table(
    runs: Sequence[Path], scorer: str, columns: Sequence[str], by: str, against: Path | None
) -> Table:
    """Paired differences in points: of all pairs of runs, or of each run against one."""
    table = []
    for a, b in [(a, against) for a in runs] if against else itertools.combinations(runs, 2):
        seeds = _seeds(a), _seeds(b)
        several = len(seeds[0]) > 1
        found = compare_seeds(*seeds) if several else compare_runs(seeds[0][0], seeds[1][0])
        differences = found["metrics"]
        row = {"difference": f"{_label(b, by)} − {_label(a, by)}"}
        for column in columns:
            entry = differences.get(f"{column}.{scorer}") or {}
            interval = entry.get("ci95")
            value = entry.get("difference") if interval else None
            row |= percent(column, value, interval, "+.1f")
        table.append(row)
    return table


def _seeds(row: Path) -> list[Path]:
    """The runs of a row: `RUN`, or `RUN+RUN+RUN` for one run per training seed."""
    return [Path(part) for part in str(row).split("+")]


def _metrics(row: Path) -> dict[str, Any]:
    runs = _seeds(row)
    found = combine_runs(runs) if len(runs) > 1 else _json(runs[0], "scores")
    metrics: dict[str, Any] = found["metrics"]
    return metrics


def _is_here(row: Path) -> bool:
    return all((run / "scores.json").exists() for run in _seeds(row))


def _json(run: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _label(run: Path, by: str) -> str:
    """The editor, what stands behind the last dash of the folder's name, or all of it."""
    first, *others = _seeds(run)
    if by == "editor":
        manifest = _json(first, "manifest")
        scope = (manifest.get("arguments") or {}).get("scope")
        name = str(manifest["editor"]) + (f" behind {scope}" if scope else "")
    else:
        name = first.name if by == "run" else first.name.rsplit("-", 1)[-1]
    return name + (" (seeds)" if others else "")


def _planned_label(row: Path, by: str) -> str:
    """As `_label`, of a run that may not be here.

    Its folder begins with the editor's name, or with EDITOR.SCOPE.
    """
    first, *others = _seeds(row)
    if by != "editor":
        return _label(row, by)
    name = first.name.split("-")[0].replace(".", " behind ")
    return name + (" (seeds)" if others else "")


def read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            sys.exit(f"{path}: line {number} has not as many cells as the first. Mend it.")
    return rows


def write_csv(path: Path, table: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def markdown(table: Table) -> list[str]:
    """The lines of a Markdown table. Bold: a difference whose interval excludes 0."""
    hidden = ("_low", "_high")
    columns = [c for c in table[0] if not c.endswith(hidden) and c != "sequences"]
    rows = [columns, *([_cell(row, c) for c in columns] for row in table)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


def _cell(row: dict[str, str], column: str) -> str:
    text = row[column]
    if text == BASE:
        return f"*{text}*"
    if column == "n" and row.get("sequences"):
        return f"{text} / {row['sequences']} seq."
    if f"{column}_low" not in row:
        return text
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if not text or not low or float(low) == float(high):
        return text or "–"
    text = f"{text} [{low}, {high}]"
    excludes_zero = float(low) > 0 or float(high) < 0
    return f"**{text}**" if "difference" in row and excludes_zero else text


MARKED = re.compile(
    r"(?P<begin>(?P<indent> *)<!-- tables\.py (?P<arguments>.*?) -->\n).*?(?P<end> *<!-- end -->)",
    re.DOTALL,
)


def fill(page: Path) -> None:
    """Writes the CSV files of a page from the runs that are here, and its tables from them."""
    for marker in MARKED.finditer(page.read_text(encoding="utf-8")):
        args = _parser().parse_args(marker["arguments"].split())
        if args.csv:
            path = page.parent / args.csv
            if rows := updated(args, read_csv(path) if path.exists() else []):
                write_csv(path, rows)
    page.write_text(filled(page), encoding="utf-8")


def filled(page: Path) -> str:
    """The text of a page with all its tables made from their CSV files."""

    def table(marker: re.Match[str]) -> str:
        args = _parser().parse_args(marker["arguments"].split())
        if args.csv and not (page.parent / args.csv).exists():  # pairs that wait for a run
            return marker[0]
        rows = summary(args.summary, page) if args.summary else read_csv(page.parent / args.csv)
        lines = [marker["indent"] + line for line in markdown(rows)]
        return marker["begin"] + "\n".join(lines) + "\n" + marker["end"]

    return MARKED.sub(table, page.read_text(encoding="utf-8"))


def updated(args: argparse.Namespace, old: Table) -> Table:
    """The table with new rows for the runs that are here; the other rows stay.

    A run that never had a row gets one that says "not run". A table of pairs is made anew only
    when all its runs are here. Raises SystemExit where the columns have changed.
    """
    runs = [*args.runs, *([args.against] if args.against else [])]
    here = [r for r in runs if _is_here(r)]
    if not here or (args.pairs and here != runs):
        return old
    if here == runs:
        return made(args)
    base, *new = score_table(here, args.scorer, args.columns or COLUMNS, args.by)
    if old and list(base) != list(old[0]):
        raise SystemExit(f"{args.csv}: other columns than before; all its runs are needed")
    rows = {row[args.by]: row for row in [*old, *new]}
    if runs[0] in here or not old:
        rows[BASE] = base
    labels = [_planned_label(r, args.by) for r in runs]
    missing = dict.fromkeys(base, "") | {"n": "not run"}
    return [rows.get(label, missing | {args.by: label}) for label in [BASE, *labels]]


def made(args: argparse.Namespace) -> Table:
    if args.pairs:
        columns = args.columns or PAIR_COLUMNS
        return pair_table(args.runs, args.scorer, columns, args.by, args.against)
    return score_table(args.runs, args.scorer, args.columns or COLUMNS, args.by)


def summary(sources: Sequence[str], page: Path) -> Table:
    """One row per editor; its columns come from `FILE.csv:COLUMN` each, beside the page."""
    rows: dict[str, dict[str, str]] = {}
    for source in sources:
        name, _, column = source.partition(":")
        title = f"{Path(name).stem}: {column}"
        for row in read_csv(page.parent / name):
            if row["editor"] != BASE:
                cells = {title + end: row[column + end] for end in ("", "_low", "_high")}
                rows.setdefault(row["editor"], {"editor": row["editor"]}).update(cells)
    return list(rows.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--pairs", action="store_true", help="paired differences")
    parser.add_argument("--scorer", default="exact")
    parser.add_argument("--against", type=Path, help="pairs: each run against this one")
    parser.add_argument("--columns", nargs="+", help="instead of the usual ones")
    parser.add_argument("--by", choices=("editor", "variant", "run"), default="editor")
    parser.add_argument("--csv", type=Path, help="file of the table, beside its page")
    parser.add_argument("--summary", nargs="+", metavar="FILE.csv:COLUMN")
    parser.add_argument("--fill", type=Path, metavar="PAGE")
    return parser


def main() -> None:
    args = _parser().parse_args()
    if args.fill:
        fill(args.fill)
    else:
        print("\n".join(markdown(made(args))))


if __name__ == "__main__":
    main()
