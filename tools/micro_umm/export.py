"""Writes the checkpoints of a work folder as the bundled micro-umm: fp16 weights, tokenizer.

python -m tools.micro_umm.export --help
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from errata.backbones._micro_umm import MicroUmm
from tools.micro_umm.data import tokenizer
from tools.micro_umm.train import ASSETS, fresh, load_picture, load_text


def save(model: MicroUmm, folder: Path) -> None:
    """fp16 weights, and a config that asks for fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    for part in (stored, stored["text_config"]):
        part["dtype"] = "float32"
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o644)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, default=Path("work/micro-umm"))
    p.add_argument("--out", type=Path, default=ASSETS)
    args = p.parse_args()
    model = fresh()
    load_text(model, args.work)
    load_picture(model, args.work)
    save(model, args.out)


if __name__ == "__main__":
    main()
