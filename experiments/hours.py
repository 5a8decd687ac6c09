"""Hours and memory to expect on one H100 for the published tables: arithmetic, nothing is measured.

    python experiments/hours.py --out docs/results/data

Writes hours-pictures.csv (the three unified models) and hours-vlm.csv (the three of MMEdit). A
number of operations is divided by 989 TFLOP/s, the dense bfloat16 peak of an H100 SXM, times a
share that is reached; the shares are guesses, named below. Loading, judging and the report are not
in it.

    a forward of a generator    2 p T + 4 T^2 d L     p parameters that a token passes, T tokens,
                                                      L blocks of width d
    a picture                   steps x rows of guidance x that forward, and the VAE's decoder
                                (a UNet and the decoder: torch.utils.flop_counter, on meta tensors)
    an edit                     6 P x tokens x steps of its search, P parameters of the text model
    an answer or a rationale    2 P x tokens read, then one step of the model a token
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEAK = 989e12
DRAWING, READING, SEARCHING, TRAINING = 0.4, 0.4, 0.1, 0.3  # shares of the peak
TOKEN = 0.03  # s a generated token of a batch: launching the kernels, not computing
BATCH = 64
EDITS, PICTURES = 2971, 5500  # UniKE.json
VAE = 10.5e12  # a decoder of Stable Diffusion's shape at 1024 x 1024 pixels, counted
SEARCH = 25 * 21 * 30  # steps x prompts of an edit x their tokens
HOUR = 3600


@dataclass(frozen=True)
class Unified:
    """text: parameters of the text model. forward: of the generator, in operations, for one row.

    weights: parameters of all parts.
    """

    name: str
    text: float
    forward: float
    steps: int
    rows: int
    weights: float

    @property
    def picture(self) -> float:
        return self.steps * self.rows * self.forward + VAE

    def row(self) -> list[Any]:
        picture = self.picture / (DRAWING * PEAK)
        edits = EDITS * 6 * self.text * SEARCH / (SEARCHING * PEAK)
        rationales = PICTURES / BATCH * 512 * TOKEN
        cell = 2 * PICTURES * picture + 2 * edits + rationales
        controls = 4 * PICTURES * picture + rationales
        memory = 2 * self.weights / 1e9 + 8
        return [
            self.name, round(self.picture / 1e15, 2), round(picture, 1),
            *(round(x / HOUR, 1) for x in (2 * PICTURES * picture, 2 * edits, rationales, cell)),
            round(controls / HOUR, 1), round(memory),
        ]  # fmt: skip


def joint(p: float, tokens: int, width: int, blocks: int) -> float:
    """A forward of a transformer in which text and image attend to each other."""
    return 2 * p * tokens + 4 * tokens**2 * width * blocks


UNIFIED = (
    # 12 width^2 parameters a token in 6 + 12 blocks of width 1536; 4096 image and 300 text tokens
    Unified("Ovis-U1-3B", 1.7e9, joint(18 * 12 * 1536**2, 4396, 1536, 18), 50, 2, 3.6e9),
    # 4B parameters in 32 blocks of width 2520
    Unified("OmniGen2", 3.1e9, joint(4.0e9, 4156, 2520, 32), 50, 2, 7.6e9),
    # a UNet of SDXL's shape, counted; 30 steps on 64 feature tokens are below a hundredth of it
    Unified("BLIP3o-4B", 3.1e9, 6.8e12, 50, 2, 10.0e9),
)

#: (name, parameters, tokens of a question with its picture)
VLMS = (("BLIP2-OPT", 3.8e9, 62), ("MiniGPT-4", 7.8e9, 72), ("LLaVA-1.5", 7.1e9, 606))
#: (editor, steps of its training, rows of a step: edit, rephrasings, locality)
TRAINED = (
    ("mend", 30_000, 6), ("ke", 30_000, 6), ("serac", 50_000, 6), ("dualedit", 50_000, 4 * 5),
    ("visedit", 50_000, 4 * 5),
)  # fmt: skip
QUESTIONS = 6  # of a case: the edit, two rephrasings, two of locality asked twice


def vlms() -> Iterator[list[Any]]:
    for name, size, tokens in VLMS:
        answers = 2 * size * tokens * QUESTIONS / (READING * PEAK) + QUESTIONS * 4 * TOKEN
        gradient = 25 * 6 * size * tokens / (SEARCHING * PEAK)
        for task, cases in (("E-VQA", 2093), ("E-IC", 1000)):
            train = {
                editor: steps * rows * 6 * size * tokens / (TRAINING * PEAK) / HOUR
                for editor, steps, rows in TRAINED
            }
            yield [
                name, task, cases, round(cases * answers / HOUR, 1),
                round(cases * gradient / HOUR, 1), *(round(v, 1) for v in train.values()),
                round(2 * size / 1e9 + 6),
            ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    tables: dict[str, tuple[list[str], Iterator[list[Any]]]] = {
        "hours-pictures": (
            ["model", "PFLOP a picture", "s a picture", "h of pictures", "h of edits",
             "h of rationales", "h of a cell", "h of controls, once a model", "GB"],
            (m.row() for m in UNIFIED),
        ),
        "hours-vlm": (
            ["model", "task", "cases", "h of answers", "h of gradient edits",
             *(f"h to train {e}" for e, _, _ in TRAINED), "GB"],
            vlms(),
        ),
    }  # fmt: skip
    for name, (columns, rows) in tables.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
