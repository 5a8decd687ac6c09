"""Writes a checkpoint of micro-vlm as the bundled model and measures it.

    python -m tools.micro_vlm.export work/micro-vlm/K.pt

The model is stored as fp16 and loaded again as any user would load it. The accuracies that this
prints are for development; those of the card come from card.py, on pictures that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from tools.micro_vlm.data import tokenizer
from tools.micro_vlm.model import build_model
from tools.micro_vlm.score import GROUPS, TUNING_SEED, accuracy, markdown
from tools.micro_vlm.tokenizer import save_processor
from tools.micro_vlm.train import ASSETS, special_ids


def save(checkpoint: Path, folder: Path) -> None:
    """fp16 weights, a config that asks for fp32, and the processor."""
    model = build_model(len(tokenizer()), special_ids(), None)
    model.load_state_dict(torch.load(checkpoint))
    ids = special_ids()
    config = model.generation_config
    config.bos_token_id, config.eos_token_id = ids["<s>"], ids["</s>"]
    config.pad_token_id = ids["<pad>"]
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    for part in (stored, stored["text_config"], stored["vision_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    save_processor(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--out", type=Path, default=ASSETS)
    p.add_argument("--rows", type=int, default=200)
    args = p.parse_args()
    torch.set_num_threads(1)
    save(args.checkpoint, args.out)
    model = AutoModelForImageTextToText.from_pretrained(args.out).eval()
    groups = {g: accuracy(model, args.rows, TUNING_SEED, "look", g) for g in GROUPS}
    print(markdown(groups))


if __name__ == "__main__":
    main()
