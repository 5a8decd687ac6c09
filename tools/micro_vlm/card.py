"""Measures the bundled micro-vlm and writes its card (README.md beside the weights).

    python -m tools.micro_vlm.card

Run it once, when the model is final: its pictures use scene seeds that neither training nor tuning
nor any case of the benchmark `microworld` uses. The text around the figures is card.md.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from errata.benchmarks.microworld import Microworld
from errata.synthetic.objects import render
from tools.micro_vlm.data import image_row, text_row
from tools.micro_vlm.score import CARD_SEED, GROUPS, accuracy, base_accuracy, markdown
from tools.micro_vlm.trace import table
from tools.micro_vlm.train import ASSETS

TEXT = Path(__file__).with_suffix(".md")


def generated(model: nn.Module, folder: Path, n: int) -> int:
    """How many of n questions the ordinary processor and `generate` answer right."""
    processor = AutoProcessor.from_pretrained(folder)
    rng = random.Random("generated")
    right = 0
    for k in range(n):
        row = image_row(rng, CARD_SEED) if k % 2 else text_row(rng)
        seg = rng.choice(row.segments[:-1])
        if row.scene:
            image = Image.fromarray(render.render(row.scene))
            text = f"<image>\n{seg.prompt}"
            inputs = processor(images=image, text=text, return_tensors="pt")
        else:
            inputs = processor(text=seg.prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        right += answer == seg.answer and int(new[-1]) == processor.tokenizer.eos_token_id
    return right


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=ASSETS)
    p.add_argument("--rows", type=int, default=600)
    p.add_argument("--pairs", type=int, default=100)
    args = p.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    groups = {
        g: accuracy(model, args.rows if g == "seen" else args.rows // 3, CARD_SEED, "card", g)
        for g in GROUPS
    }
    model.eval()
    base = {
        f"{t}@{s}": base_accuracy(model, t, s) for t in Microworld.tasks for s in ("dev", "eval")
    }
    entities = Microworld().audit()["entities"]
    figures = {
        "params": f"{sum(q.numel() for q in model.parameters()) / 1e6:.2f}",
        "vocab": model.config.text_config.vocab_size,
        "size": f"{(args.model / 'model.safetensors').stat().st_size / 1e6:.1f}",
        "known": entities["known"],
        "generic": entities["generic looks"],
        "withheld": entities["withheld"],
        "hidden": entities["facts withheld from known entities"],
        "accuracy": markdown(groups),
        "right": generated(model, args.model, 400),
        "asked": 400,
        "base": markdown(base),
        "trace": table(model, args.pairs),
        "pairs": args.pairs,
    }
    text = TEXT.read_text(encoding="utf-8")
    for key, value in figures.items():
        text = text.replace("{" + key + "}", str(value))
    (args.model / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
