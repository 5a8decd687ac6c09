"""Measures the bundled micro-umm and writes its card (README.md beside the weights).

Run it once, when the model is final. The text around the figures is card.md.

    python -m tools.micro_umm.card --seconds L C D E    (seconds of the four training stages)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from errata.backbones.micro_umm import MicroUmmBackbone
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import OBJECTS
from tools.micro_umm.score import Table, flat, picture_table, text_table
from tools.micro_umm.trace import table
from tools.micro_umm.train import ASSETS

TEXT = Path(__file__).with_suffix(".md")
READING = TEXT.with_name("reading.md")
#: accuracy that we aimed at: (kind of prompt, objects, attributes) -> per cent
WANTED = {
    ("explicit", "drawn", "stated"): 95,
    ("explicit", "never drawn", "stated"): 95,
    ("implicit", "drawn", "all"): 90,
    ("rationale, replace", "drawn", "stated"): 85,
    ("rationale, prepend", "drawn", "stated"): 85,
    ("rationale, instruct", "drawn", "stated"): 85,
    ("rationale, replace", "never drawn", "stated"): 85,
    ("rationale, prepend", "never drawn", "stated"): 85,
    ("rationale, instruct", "never drawn", "stated"): 85,
}


def targets(tallies: Table) -> str:
    """Which of WANTED are met, as a Markdown list."""
    lines = []
    for key, least in WANTED.items():
        marks = flat(tallies[key])
        share = 100 * sum(marks) / len(marks)
        verdict = "met" if share >= least else "**not met**"
        lines.append(f"- {', '.join(key)}: {share:.1f} (n {len(marks)}), wanted {least}: {verdict}")
    return "Wanted of the unedited model, on trained captions:\n\n" + "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=ASSETS)
    p.add_argument("--pictures", type=int, default=120, help="per kind of prompt and of object")
    p.add_argument("--pairs", type=int, default=300)
    p.add_argument("--steps", type=int, nargs=4, default=(600, 1000, 2300, 1400))
    p.add_argument("--seconds", type=int, nargs=4, required=True, metavar=tuple("LCDE"))
    args = p.parse_args()
    torch.set_num_threads(1)
    bb = MicroUmmBackbone.load(str(args.model))
    seen_table, tallies = picture_table(bb, args.pictures, lang.SEEN, "card")
    held_table, _ = picture_table(bb, args.pictures // 2, lang.HELD, "card")
    figures = {
        "params": f"{sum(q.numel() for q in bb.model.parameters()) / 1e6:.2f}",
        "vocab": bb.text_config.vocab_size,
        "size": f"{(args.model / 'model.safetensors').stat().st_size / 1e6:.1f}",
        "drawn": sum(o.drawn for o in OBJECTS),
        "undrawn": sum(not o.drawn for o in OBJECTS),
        "minutes": f"{sum(args.seconds) / 60:.0f}",
        "text": text_table(bb, args.pictures),
        "seen": seen_table,
        "held": held_table,
        "targets": targets(tallies),
        "trace": table(bb, args.pairs, args.pairs // 6),
        "reading": READING.read_text(encoding="utf-8") if READING.exists() else "",
    }
    for name, steps, seconds in zip("lcde", args.steps, args.seconds, strict=True):
        figures[f"{name}_steps"], figures[f"{name}_seconds"] = steps, seconds
    text = TEXT.read_text(encoding="utf-8")
    for key, value in figures.items():
        text = text.replace("{" + key + "}", str(value).strip())
    (args.model / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
