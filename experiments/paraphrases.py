"""Scores of CounterFact runs by what their paraphrase prompts ask.

    python experiments/paraphrases.py RUN [RUN ...]

The flat files of RECIPE and EasyEdit put ROME's generation prompts ("Where X is from, people speak
the language of", "One can get to X by navigating") among the paraphrases. ROME's own paraphrases
have an unrelated text in front. Prints per run, metric and sort of prompt: n and the score in per
cent with its 95 % interval over cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from errata.benchmarks.counterfact import paraphrase_group
from errata.core import registry
from errata.evaluation.run_folder import read_run
from errata.evaluation.statistics.intervals import Intervals


def scores(run: Path, metric: str) -> Iterator[tuple[str, str, float]]:
    """(sort of prompt, case, score) of every paraphrase probe that a metric scores."""
    folder, scorer = read_run(run), registry.load("metrics", metric)()
    for asked in folder.asked():
        subject = folder.cases[asked.case].edit.subject or ""
        for row in asked.rows:
            if row.probe.kind == "t_generality":
                value = scorer.score(row.before, row.after, row.probe)
                if value is not None:
                    yield paraphrase_group(row.probe.prompt.text, subject), asked.case, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        for metric in ("probability", "begins"):
            found: dict[str, dict[str, list[float]]] = {}
            for sort, case, value in scores(run, metric):
                found.setdefault(sort, {}).setdefault(case, []).append(value)
            for sort, of_case in sorted(found.items()):
                mean = Intervals(list(of_case)).mean([of_case], [1.0], (0.0, 1.0))
                assert mean is not None and mean.ci95 is not None
                low, high = (round(100 * x, 1) for x in mean.ci95)
                value = round(100 * mean.value, 1)
                print(f"{run} {metric} {sort} n={len(of_case)} {value} [{low}, {high}]")


if __name__ == "__main__":
    main()
