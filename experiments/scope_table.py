"""The table scope x correction: one row per correction, one column per scope.

    python experiments/scope_table.py METRIC > docs/results/data/scope-METRIC.csv

Reads the runs that `sh experiments/scope_table.sh` wrote; a cell without a run stays empty, and a
row or column without any is left out. Per cent with 95 % intervals, exact match.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

RUNS = Path("runs/scope_table")
SCOPES = ("none", "knn", "dualedit", "trained", "testimony", "oracle")
EDITORS = ("ft_l", "tpatcher", "lora", "ft_v", "memit", "unike")
ENDS = ("", "_low", "_high")


def cell(scope: str, editor: str, metric: str) -> dict[str, str]:
    file = RUNS / f"{scope}.{editor}" / "scores.json"
    if not file.exists():
        return dict.fromkeys((scope + end for end in ENDS), "")
    found = json.loads(file.read_text(encoding="utf-8"))["metrics"][f"{metric}.exact"]
    numbers = (found["value"], *found["ci95"])
    return {scope + e: f"{100 * x:.1f}" for e, x in zip(ENDS, numbers, strict=True)}


def main() -> None:
    (metric,) = sys.argv[1:]
    if not RUNS.is_dir():
        sys.exit(f"{RUNS} is missing. Run `sh experiments/scope_table.sh` first.")
    ran = [file.parent.name.split(".") for file in RUNS.glob("*/scores.json")]
    scopes = [s for s in SCOPES if any(s == scope for scope, _ in ran)]
    rows = []
    for editor in EDITORS:
        if any(editor == e for _, e in ran):
            row = {"correction": editor}
            for scope in scopes:
                row |= cell(scope, editor, metric)
            rows.append(row)
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
