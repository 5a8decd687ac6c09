"""Markdown rows for runs that draw, made from run folders and from nothing else.

    python experiments/pictures.py [--part object=drawn] DIRECT[,REASONING] [...]
    python experiments/pictures.py --rationales REASONING [...]
    python experiments/pictures.py --rest DIRECT [...]

One row per argument: a run under `direct` and, behind a comma, the run of the same editor under
`reasoning`. Cells are per cent with 95 % intervals over sequences; the controls come last.
`--rationales`: pictures that show the target, by where the rationale that they were drawn from
states it (in the sentence that recalls the fact, in the caption), over cases and stages.
`--rest`: of the attributes that were not edited, how many of those that can be read in both show
what the unedited model's picture of the same prompt and seed shows; for edited pictures, those of
them that show the target, and the unedited model told the fact.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tables import cell, percent

from errata.core.types import Image
from errata.evaluation.bootstrap import Bootstrap
from errata.evaluation.run_folder import RunFolder, read_run
from errata.evaluation.score_table import load_metrics, read_score_table
from errata.io.images import load_image
from errata.judges.rendered_shapes import read

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


def named(run: str) -> str:
    """The folder without its protocol."""
    return Path(run).name.rsplit("-", 1)[0]


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
        lines.append(f"| {named(pair[0])} | {n} | " + " | ".join(cells) + " |")
    first = [scores(run) for run in pairs[0]]
    metrics = [of(s, part) for s in first]
    lines += ["", "| control | VQA |", "|---|---|"]
    lines += [f"| {c} | {cell(metrics[i], k)} |" for c, i, k in CONTROLS if i < len(metrics)]
    return lines


def mean(over: Bootstrap, scores_of: dict[str, list[float]]) -> str:
    """Of lane -> scores, as in a table."""
    found = over.mean([scores_of], [1.0])
    return percent(found.value, found.ci95) if found else percent(None, None)


def by_rationale(runs: list[str]) -> list[str]:
    kinds = {"both": (1, 1), "fact alone": (1, 0), "caption alone": (0, 1), "neither": (0, 0)}
    lines = ["| run | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for path in runs:
        run = read_run(Path(path))
        sheet = {
            c.key(): g for c, g in read_score_table(run, load_metrics(["word", "judge"])).items()
        }
        drawn = sheet["vqa.judge"]
        found: dict[tuple[float | None, ...], dict[str, list[float]]] = {}
        for stage, cells in drawn.items():
            for case, shown in cells.items():
                stated = tuple(
                    sheet[f"reasoning.{part}_word"][stage][case].score
                    for part in ("recall", "caption")
                )
                if shown.score is not None:
                    lanes = found.setdefault(stated, {})
                    lanes.setdefault(shown.asked.lane, []).append(shown.score)
        over = Bootstrap(list(run.lanes))
        cells = []
        for kind in kinds.values():
            scores_of = found.get(kind, {})
            count = sum(map(len, scores_of.values()))
            cells.append(f"{mean(over, scores_of)} (n = {count})")
        lines.append(f"| {named(path)} | " + " | ".join(cells) + " |")
    return lines


def rest(runs: list[str]) -> list[str]:
    lines = [
        "| run | edited | edited, showing the target | fact in the prompt |",
        "|---|---|---|---|",
    ]
    for path in runs:
        run = read_run(Path(path))
        over = Bootstrap(list(run.lanes))
        lane_of = {case: lane for lane, cases in run.lanes.items() for case in cases}
        found: list[dict[str, list[float]]] = [{}, {}, {}]
        drawn = {tag: _drawn(run, tag) for tag in ("pre", "", "oracle")}
        for (case, probe), old in drawn["pre"].items():
            for row, tag in ((0, ""), (2, "oracle")):
                now, verdict = drawn[tag][case, probe], run.answers[case, probe, tag].verdicts[0]
                same = _same(_read(old), _read(now), run.cases[case].asked)
                if same is None:
                    continue
                found[row].setdefault(lane_of[case], []).append(same)
                if row == 0 and verdict.meets:
                    found[1].setdefault(lane_of[case], []).append(same)
        cells = [mean(over, scores_of) for scores_of in found]
        lines.append(f"| {named(path)} | " + " | ".join(cells) + " |")
    return lines


def _drawn(run: RunFolder, tag: str) -> dict[tuple[str, str], Path]:
    """(case, drawn probe about its edit) -> the first seed's picture under a tag."""
    return {
        (case, probe): run.path / answer.images[0]
        for (case, probe, t), answer in run.answers.items()
        if t == tag and probe.startswith("vqa/")
    }


@cache
def _read(path: Path) -> dict[str, str]:
    return read(np.asarray(load_image(Image(str(path)))))


def _same(old: dict[str, str], new: dict[str, str], edited: str) -> float | None:
    both = [(old[a], new[a]) for a in old if a != edited and old[a] and new[a]]
    return sum(a == b for a, b in both) / len(both) if both else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=lambda text: text.split(","))
    parser.add_argument("--part", default="", help="of scores.json, such as object=drawn")
    parser.add_argument("--rationales", action="store_true")
    parser.add_argument("--rest", action="store_true")
    args = parser.parse_args()
    flat = [run for pair in args.runs for run in pair]
    if args.rationales:
        made = by_rationale(flat)
    else:
        made = rest(flat) if args.rest else table(args.runs, args.part)
    print("\n".join(made))


if __name__ == "__main__":
    main()
