"""Tables of runs that draw (`micro-umm`), from their run folders. From the repository root:

    python experiments/pictures.py [--part object=drawn] DIRECT[,REASONING] [...]
    python experiments/pictures.py --controls DIRECT,REASONING
    python experiments/pictures.py --rationales REASONING [...]
    python experiments/pictures.py --rest DIRECT [...]

One row per argument: a run under `direct` and, after a comma, the run of the same editor under
`reasoning`. Numbers are per cent with 95 % intervals over sequences.
`--controls`: VQA of the unedited model, with and without the fact stated.
`--rationales`: VQA by where the rationale that a picture was drawn from states the target: in the
sentence that recalls the fact, in the caption, in both, in neither; `n` counts cases and stages.
`--rest`: of the attributes that were not edited and that can be read in both pictures, the share
that shows what the unedited model's picture of the same prompt and seed shows. Columns: the edited
pictures, those of them that show the target, and the unedited model with the fact in its prompt.
`--csv FILE` writes the table as a CSV file of docs/results/data, for `tables.py --fill PAGE`.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tables import Table, markdown, percent, score_cells, write_csv

from errata.core.types import Image
from errata.evaluation.run_folder import RunFolder, read_run
from errata.evaluation.score_table import load_metrics, read_score_table
from errata.evaluation.statistics.intervals import Intervals
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
    content: dict[str, Any] = json.loads((Path(run) / "scores.json").read_text(encoding="utf-8"))
    return content


def name_of(run: str) -> str:
    """The folder's name without its protocol."""
    return Path(run).name.rsplit("-", 1)[0]


def metrics_of(run: str, part: str) -> dict[str, Any]:
    """The metrics of all cases, or of those of one part (`object=drawn`, `category=colour`)."""
    content = scores(run)
    name, _, value = part.partition("=")
    metrics: dict[str, Any] = content["by_part"][name][value] if part else content["metrics"]
    return metrics


def score_table(pairs: list[list[str]], part: str) -> Table:
    table = []
    for pair in pairs:
        first = scores(pair[0])
        row = {"run": name_of(pair[0]), "n": str(first["cases"]), "sequences": str(first["units"])}
        metrics = [metrics_of(run, part) for run in pair]
        for column, i, key in COLUMNS:
            row |= score_cells(metrics[i] if i < len(metrics) else {}, key, column)
        table.append(row)
    return table


def control_table(pair: list[str], part: str) -> Table:
    metrics = [metrics_of(run, part) for run in pair]
    return [
        {"control": control} | score_cells(metrics[i], key, "VQA")
        for control, i, key in CONTROLS
        if i < len(metrics)
    ]


def mean_cells(column: str, intervals: Intervals, scores: dict[str, list[float]]) -> dict[str, str]:
    """The cells of the mean over sequences (lanes)."""
    mean = intervals.mean([scores], [1.0], within=(0.0, 1.0))
    return percent(column, mean.value, mean.ci95) if mean else percent(column, None, None)


def rationale_table(runs: list[str]) -> Table:
    kinds = {"both": (1, 1), "fact alone": (1, 0), "caption alone": (0, 1), "neither": (0, 0)}
    table = []
    for path in runs:
        run = read_run(Path(path))
        columns = {
            c.key(): g for c, g in read_score_table(run, load_metrics(["word", "judge"])).items()
        }
        by_kind: dict[tuple[float | None, ...], dict[str, list[float]]] = {}
        for stage, cells in columns["vqa.judge"].items():
            for case, shown in cells.items():
                stated = tuple(
                    columns[f"reasoning.{part}_word"][stage][case].score
                    for part in ("recall", "caption")
                )
                if shown.score is not None:
                    lanes = by_kind.setdefault(stated, {})
                    lanes.setdefault(shown.asked.lane, []).append(shown.score)
        intervals = Intervals(list(run.lanes))
        row = {"run": name_of(path)}
        for kind, stated in kinds.items():
            lanes = by_kind.get(stated, {})
            row |= mean_cells(kind, intervals, lanes)
            row[f"n ({kind})"] = str(sum(map(len, lanes.values())))
        table.append(row)
    return table


def rest_table(runs: list[str]) -> Table:
    columns = ("edited", "edited, showing the target", "fact in the prompt")
    table = []
    for path in runs:
        run = read_run(Path(path))
        intervals = Intervals(list(run.lanes))
        lane_of = {case: lane for lane, cases in run.lanes.items() for case in cases}
        kept: list[dict[str, list[float]]] = [{}, {}, {}]
        drawn = {tag: _drawn(run, tag) for tag in ("pre", "", "oracle")}
        for (case, probe), old in drawn["pre"].items():
            for column, tag in ((0, ""), (2, "oracle")):
                new, verdict = drawn[tag][case, probe], run.answers[case, probe, tag].verdicts[0]
                share = _same(_read(old), _read(new), run.cases[case].asked)
                if share is None:
                    continue
                kept[column].setdefault(lane_of[case], []).append(share)
                if column == 0 and verdict.meets:
                    kept[1].setdefault(lane_of[case], []).append(share)
        row = {"run": name_of(path)}
        for column, lanes in zip(columns, kept, strict=True):
            row |= mean_cells(column, intervals, lanes)
        table.append(row)
    return table


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
    """Share of the attributes, all but the edited one, that two pictures have in common."""
    both = [(old[a], new[a]) for a in old if a != edited and old[a] and new[a]]
    return sum(a == b for a, b in both) / len(both) if both else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=lambda text: text.split(","))
    parser.add_argument("--part", default="", help="of scores.json, such as object=drawn")
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--rationales", action="store_true")
    parser.add_argument("--rest", action="store_true")
    parser.add_argument("--csv", type=Path, help="write the table there instead of printing it")
    args = parser.parse_args()
    flat = [run for pair in args.runs for run in pair]
    if args.controls:
        table = control_table(args.runs[0], args.part)
    elif args.rationales:
        table = rationale_table(flat)
    elif args.rest:
        table = rest_table(flat)
    else:
        table = score_table(args.runs, args.part)
    if args.csv:
        write_csv(args.csv, table)
    else:
        print("\n".join(markdown(table)))


if __name__ == "__main__":
    main()
