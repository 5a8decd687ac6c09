"""Efficacy of a text run by the position of the subject's last token in the edited prompt.

    python experiments/by_position.py BACKBONE RUN [RUN ...]

Prints per run and position (0, 1, 2, 3 and further): n, and the share in per cent where the new
answer is likelier than the true one, with its 95 % interval over cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import errata
from errata.core import registry
from errata.evaluation.run_folder import read_run
from errata.evaluation.statistics.intervals import Intervals

LAST = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    model, scorer = errata.load(args.backbone), registry.load("metrics", "probability")()
    for run in args.runs:
        folder, found = read_run(run), dict[int, dict[str, list[float]]]()
        for asked in folder.asked():
            edit = folder.cases[asked.case].edit
            column = min(LAST, model.last_column(edit.prompt, edit.subject or ""))
            for row in asked.rows:
                value = scorer.score(row.before, row.after, row.probe)
                if row.probe.kind == "reliability" and value is not None:
                    found.setdefault(column, {}).setdefault(asked.case, []).append(value)
        for column, of_case in sorted(found.items()):
            mean = Intervals(list(of_case)).mean([of_case], [1.0], (0.0, 1.0))
            assert mean is not None
            low, high = (round(100 * x, 1) for x in mean.ci95 or (0.0, 1.0))
            print(f"{run} {column} n={len(of_case)} {100 * mean.value:.1f} [{low}, {high}]")


if __name__ == "__main__":
    main()
