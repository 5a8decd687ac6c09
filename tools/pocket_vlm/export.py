"""Writes a checkpoint of pocket-vlm as the bundled one: tower and projector in fp16, and configs.

python -m tools.pocket_vlm.export work/pocket-vlm/B.pt
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tools.pocket_vlm.model import LANGUAGE, MEAN, PATCH, RESERVED, SIDE, STD, config, folder

ASSETS = Path(__file__).resolve().parents[2] / "src" / "errata" / "assets" / "pocket-vlm"
WEIGHTS = "tower-and-projector.safetensors"
_NAMES = {"tower.": "model.vision_tower.", "projector.": "model.multi_modal_projector."}


def _weights(checkpoint: Path, out: Path) -> str:
    """Writes the weights under the names that the whole model has for them; their sha256."""
    stored = {}
    for key, value in torch.load(checkpoint).items():
        part = next(p for p in _NAMES if key.startswith(p))
        stored[_NAMES[part] + key.removeprefix(part)] = value.to(torch.float16).contiguous()
    save_file(stored, out, metadata={"format": "pt"})
    return hashlib.sha256(out.read_bytes()).hexdigest()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _processor(out: Path) -> None:
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        do_resize=True,
        size=size,
        do_center_crop=False,
        crop_size=size,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=AutoTokenizer.from_pretrained(folder()),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=RESERVED,
    )
    processor.image_token = "<image>"
    with tempfile.TemporaryDirectory() as stage:  # the tokenizer is the language model's
        processor.save_pretrained(stage)
        written = json.loads((Path(stage) / "processor_config.json").read_text())
    _write(out, written)


def save(checkpoint: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = config()
    whole.architectures = ["LlavaForConditionalGeneration"]
    described = json.loads(whole.to_json_string())
    for part in (described, described["text_config"], described["vision_config"]):
        part["dtype"] = "float32"
        part.pop("_name_or_path", None)
        part.pop("_model_name_or_path", None)
    _write(out / "config.json", described)
    _write(out / "generation_config.json", json.loads(
        (folder() / "generation_config.json").read_text()))  # fmt: skip
    _processor(out / "processor_config.json")
    parts = {
        "language_model": LANGUAGE,
        "reserved_token": RESERVED,
        "weights": WEIGHTS,
        "sha256": _weights(checkpoint, out / WEIGHTS),
    }
    _write(out / "parts.json", parts)
    for file in out.iterdir():
        file.chmod(0o644)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--out", type=Path, default=ASSETS)
    args = p.parse_args()
    save(args.checkpoint, args.out)


if __name__ == "__main__":
    main()
