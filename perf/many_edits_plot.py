"""The plot of docs/results/speed.md over many edits, from its table.

python perf/many_edits_plot.py [--csv docs/results/data/many-edits.csv]
    [--out docs/results/many-edits.svg]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from errata.core.figure import Figure, Line, Lines, Tone, Value, ceiling
from errata.figures.plots import svg

DATA = Path("docs/results/data/many-edits.csv")
PANELS = {"ms of an edit": "An edit, ms", "ms of a question": "A question after it, ms"}
TONES: tuple[Tone, ...] = ("changes", "stays", "right", "wrong", "soft")


def figure(rows: list[dict[str, str]]) -> Figure:
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    panels = []
    for column, title in PANELS.items():
        lines = tuple(
            Line(
                editor,
                tuple(
                    (float(r["edits so far"]), Value(float(r[column])))
                    for r in rows if r["editor"] == editor
                ),
                tone,
            )
            for editor, tone in zip(editors, TONES, strict=False)
        )  # fmt: skip
        high = ceiling(max(float(r[column]) for r in rows))
        panels.append(Lines(title, lines, axis="edits so far", high=high, percent=False))
    caption = "micro-vlm, one edit on top of the other; medians, CPU time of one thread"
    return Figure("many-edits", "Many edits", tuple(panels), 2, caption)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--csv", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=DATA.parent.parent / "many-edits.svg")
    args = parser.parse_args()
    with args.csv.open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    args.out.write_text(svg(figure(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
