"""Markdown rows for runs that draw, made from run folders and from nothing else.

    python benchmarks/pictures.py [--part object=drawn] DIRECT[,REASONING] [...]

One row per argument: a run under `direct` and, behind a comma, the run of the same editor under
`reasoning`. Cells are per cent with 95 % intervals over sequences; the controls come first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: column -> (which of the two runs, key in scores.json)
COLUMNS: tuple[tuple[str, int, str], ...] = (
    ("Eff. (edited prompt)", 0, "efficacy/stage1.exact"),
    ("Eff. (all wordings)", 0, "efficacy.exact"),
    ("first token", 0, "efficacy.first_token"),
    ("Reason.", 1, "reasoning.word"),
    ("VQA direct", 0, "vqa.judge"),
    ("VQA reasoning", 1, "vqa.judge"),
    ("text kept", 0, "t_locality.exact"),
    ("near kept", 0, "near_locality.exact"),
    ("pictures kept", 0, "i_locality.judge"),
)
CONTROLS: tuple[tuple[str, int, str], ...] = (
    ("unedited, direct", 0, "vqa.judge@pre"),
    ("unedited, own rationale", 1, "vqa.judge@pre"),
    ("unedited, fact in the prompt", 0, "vqa.judge@oracle"),
    ("unedited, fact in the rationale", 1, "vqa.judge@ceiling"),
)


def scores(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "scores.json").read_text(encoding="utf-8"))
    return found


def cell(metrics: dict[str, Any], key: str) -> str:
    entry = metrics.get(key)
    if entry is None or entry["value"] is None:
        return "–"
    text = f"{100 * entry['value']:.1f}"
    if entry.get("ci95"):
        text += " [{:.1f}, {:.1f}]".format(*(100 * v for v in entry["ci95"]))
    return text


def of(loaded: dict[str, Any], part: str) -> dict[str, Any]:
    """The metrics of all cases, or of those of one part (`object=drawn`, `category=colour`)."""
    name, _, value = part.partition("=")
    found: dict[str, Any] = loaded["by_part"][name][value] if part else loaded["metrics"]
    return found


def table(pairs: list[list[str]], part: str) -> list[str]:
    lines = [
        "| run | n | " + " | ".join(c for c, _, _ in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for pair in pairs:
        loaded = [scores(run) for run in pair]
        metrics = [of(s, part) for s in loaded]
        cells = [cell(metrics[i], key) if i < len(metrics) else "–" for _, i, key in COLUMNS]
        n = f"{loaded[0]['cases']} / {loaded[0]['units']} seq."
        lines.append(
            f"| {Path(pair[0]).name.rsplit('-', 1)[0]} | {n} | " + " | ".join(cells) + " |"
        )
    first = [scores(run) for run in pairs[0]]
    metrics = [of(s, part) for s in first]
    lines += ["", "| control | VQA |", "|---|---|"]
    lines += [f"| {c} | {cell(metrics[i], k)} |" for c, i, k in CONTROLS if i < len(metrics)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=lambda text: text.split(","))
    parser.add_argument("--part", default="", help="of scores.json, such as object=drawn")
    args = parser.parse_args()
    print("\n".join(table(args.runs, args.part)))


if __name__ == "__main__":
    main()
