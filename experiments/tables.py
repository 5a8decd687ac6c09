"""Markdown tables for docs/results.md, made from run folders and from nothing else.

Usage, in the repository root:

    python experiments/tables.py RUN [RUN ...]            one row per run
    python experiments/tables.py --pairs RUN RUN [...]    paired differences between all runs
    python experiments/tables.py --pairs RUN [...] --against RUN --columns mean5 mean6
    python experiments/tables.py --fill docs/results.md   every marked table of a page

A marked table stands between `<!-- tables.py ARGUMENTS -->` and `<!-- end -->`. What it shows of
runs that are not in this checkout stays as it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.evaluation.compare import compare_runs

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
PAIR_KEYS = (
    "t_generality/seen",
    "t_generality/unseen",
    "m_generality",
    "near_locality/near1",
    "near_locality/near2",
    "near_locality/same_image",
    "near_locality/same_answer",
    "near_locality/neighbour",
)


def cell(metrics: dict[str, Any], key: str) -> str:
    """`98.5 [97.0, 99.5]` in percent; a dash where nothing was asked."""
    entry = metrics.get(key)
    return "–" if entry is None else percent(entry["value"], entry.get("ci95"))


def percent(value: float | None, ci95: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    text = f"{100 * value:.1f}"
    return text + " [{:.1f}, {:.1f}]".format(*(100 * v for v in ci95)) if ci95 else text


def rows(runs: list[Path], scorer: str, wanted: list[str], by: str) -> list[str]:
    used = []
    loaded = []
    for run in runs:
        scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        timing = json.loads((run / "timing.json").read_text(encoding="utf-8"))
        loaded.append((manifest, scores, timing))
        used += [
            c for c in wanted if scores["metrics"].get(f"{c}.{scorer}", {}).get("value") is not None
        ]
    columns = [c for c in wanted if c in used]
    lines = [
        f"| {by} | n | " + " | ".join(columns) + " | s/edit |",
        "|---|---|" + "---|" * (len(columns) + 1),
    ]
    base = loaded[0][1]["metrics"]
    unedited = []
    for c in columns:
        b = base.get(f"{c}.{scorer}", {}).get("base")
        unedited.append("–" if b is None else f"{100 * b:.1f}")
    lines.append("| *(base accuracy)* | | " + " | ".join(unedited) + " | |")
    for run, (manifest, scores, timing) in zip(runs, loaded, strict=True):
        metrics = scores["metrics"]
        edit = timing["phases"]["edit"]
        first = metrics[f"reliability.{scorer}"]
        n = f"{first['n']}" + (f" / {first['units']} seq." if first["units"] != first["n"] else "")
        cells = [cell(metrics, f"{c}.{scorer}") for c in columns]
        lines.append(
            f"| {_name(run, manifest, by)} | {n} | {' | '.join(cells)} "
            f"| {edit['seconds'] / max(1, edit['count']):.3f} |"
        )
    return lines


def _name(run: Path, manifest: dict[str, Any], by: str) -> str:
    """The editor, what stands behind the last dash of the folder's name, or all of it."""
    return str(manifest["editor"]) if by == "editor" else _folder(run, by)


def _folder(run: Path, by: str) -> str:
    return run.name if by == "run" else run.name.rsplit("-", 1)[-1]


def pairs(
    runs: list[Path], scorer: str, wanted: list[str], by: str, against: Path | None
) -> list[str]:
    """Paired differences; bold: the interval excludes 0. All pairs, or each against one run."""
    keys = [f"{k}.{scorer}" for k in wanted]
    lines = ["| pair (b − a) | " + " | ".join(wanted) + " |", "|---|" + "---|" * len(keys)]
    chosen = [(a, against) for a in runs] if against else list(itertools.combinations(runs, 2))
    for a, b in chosen:
        found = compare_runs(a, b)
        manifests = (json.loads((r / "manifest.json").read_text("utf-8")) for r in (a, b))
        names = [_name(r, m, by) for r, m in zip((a, b), manifests, strict=True)]
        cells = []
        for key in keys:
            entry = found["metrics"].get(key)
            if entry is None or entry["difference"] is None or not entry.get("ci95"):
                cells.append("–")
                continue
            low, high = entry["ci95"]
            text = f"{100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(f"| {names[1]} − {names[0]} | " + " | ".join(cells) + " |")
    return lines


MARKED = re.compile(
    r"(<!-- tables\.py (?P<arguments>.*?) -->\n)(?P<old>.*?)(<!-- end -->)", re.DOTALL
)


def fill(page: Path) -> None:
    """Makes every marked table of a page anew, from the runs that its marker names."""

    def table(m: re.Match[str]) -> str:
        return m[1] + "\n".join(kept(m["arguments"].split(), m["old"].splitlines())) + "\n" + m[4]

    page.write_text(MARKED.sub(table, page.read_text(encoding="utf-8")), encoding="utf-8")


def kept(arguments: list[str], old: list[str]) -> list[str]:
    """The table anew, with the old rows of runs that are not here (runs/results/EDITOR-...).

    A run that never had a row gets one that says so.

    A table of pairs stays whole or is made whole. Raises SystemExit where columns have changed.
    """
    args = _parser().parse_args(arguments)
    runs = [*args.runs, *([args.against] if args.against else [])]
    here = [r for r in runs if (r / "scores.json").exists()]
    if len(here) == len(runs):
        return made(arguments)
    if args.pairs or not here:
        return old
    flags = [a for a in arguments if a not in map(str, runs)]
    head, rule, base, *new = made([*flags, *map(str, here)])
    if head != old[0]:
        raise SystemExit(f"the columns of {here[0]} are not those of its table: make all its runs")
    rows = {line.split("|")[1].strip(): line for line in [*old[3:], *new]}
    labels = [r.name.split("-")[0] if args.by == "editor" else _folder(r, args.by) for r in runs]
    never = "| {} | not run |" + " |" * (head.count("|") - 3)
    lines = [rows.get(x, never.format(x)) for x in labels]
    return [head, rule, old[2] if runs[0] not in here else base, *lines]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--scorer", default="exact")
    parser.add_argument("--against", type=Path, help="pairs: each run against this one")
    parser.add_argument("--columns", nargs="+", help="instead of the usual ones")
    parser.add_argument("--by", choices=("editor", "variant", "run"), default="editor")
    parser.add_argument("--fill", type=Path)
    return parser


def made(arguments: list[str] | None = None) -> list[str]:
    args = _parser().parse_args(arguments)
    if args.fill:
        fill(args.fill)
        return []
    if args.pairs:
        columns = args.columns or list(PAIR_KEYS)
        return pairs(args.runs, args.scorer, columns, args.by, args.against)
    return rows(args.runs, args.scorer, args.columns or list(COLUMNS), args.by)


if __name__ == "__main__":
    print("\n".join(made()))
