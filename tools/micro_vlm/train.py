"""Trains micro-vlm from scratch on one CPU thread, in about an hour.

    python -m tools.micro_vlm.train [--work FOLDER] [--resume]

Stages: V a supervised vision tower, T the language model on text alone, J and K everything together
(dense captions, packed questions, in-context rows). Checkpoints go into the work folder; `--resume`
continues from the last one.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from tools.micro_vlm.data import (
    Batch,
    collate,
    context_row,
    image_row,
    text_row,
    tokenizer,
)
from tools.micro_vlm.model import build_model, vision_config
from tools.micro_vlm.score import TUNING_SEED, accuracy, forward, show
from tools.micro_vlm.tower import train_tower

ASSETS = Path(__file__).resolve().parents[2] / "src" / "errata" / "assets" / "micro-vlm"


def special_ids() -> dict[str, int]:
    return {t: tokenizer().convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>", "<image>")}


def batch_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    keep = batch.labels >= 0
    logits = model.lm_head(forward(model, batch)[keep])
    return F.cross_entropy(logits, batch.labels[keep])


def optimiser(model: nn.Module, lr: float, tower_scale: float) -> torch.optim.AdamW:
    tower = list(model.model.vision_tower.parameters())
    inner = {id(p) for p in tower}
    rest = [p for p in model.parameters() if id(p) not in inner]
    groups = [
        {"params": rest, "lr": lr, "base": lr},
        {"params": tower, "lr": lr * tower_scale, "base": lr * tower_scale},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))


def schedule(step: int, steps: int, warm: int, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `floor`."""
    if step < warm:
        return (step + 1) / warm
    x = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x))


@dataclass(frozen=True, slots=True)
class Stage:
    """Some steps of language-model training.

    `sizes` counts a step's rows: pictures, text, in-context. `horizon` is the length of the cosine
    of which the stage runs the first `steps`. A stage that `follows` another keeps its optimiser's
    state.
    """

    name: str
    steps: int
    horizon: int
    lr: float
    sizes: tuple[int, int, int]
    context_weight: float = 0.5
    warm: int = 40
    follows: str | None = None


#: K has a larger share of in-context rows: by then these are what is left to learn.
STAGES = (
    Stage("T", 200, 200, 2e-3, (0, 32, 0)),
    Stage("J", 600, 1600, 2e-3, (32, 10, 10)),
    Stage("K", 700, 700, 1.44e-3, (24, 10, 14), context_weight=0.8, warm=0, follows="J"),
)


def batches(rng: random.Random, stage: Stage) -> list[tuple[str, Batch, float]]:
    """One step's batches with their loss weights."""
    images, texts, contexts = stage.sizes
    out = []
    if images:
        out.append(("image", collate([image_row(rng, 0) for _ in range(images)]), 1.0))
    if texts:
        out.append(("text", collate([text_row(rng) for _ in range(texts)]), 0.4))
    rows = [context_row(rng, 0) for _ in range(contexts)]
    for with_image in (True, False):
        part = [r for r in rows if (r.scene is not None) == with_image]
        if part:
            weight = stage.context_weight * len(part) / contexts
            out.append(("context", collate(part), weight))
    return out


def run_stage(model: nn.Module, stage: Stage, work: Path, start: int) -> None:
    """Trains from step `start` on, with a checkpoint every 100 steps."""
    opt = optimiser(model, stage.lr, 0.3)
    bases = [g["base"] for g in opt.param_groups]
    before = stage.name if start else stage.follows
    if before:
        opt.load_state_dict(torch.load(work / f"{before}.opt.pt"))
    t0, losses = time.time(), {}
    for step in range(start, stage.steps):
        rng = random.Random(f"{stage.name}/{step}")
        for g, base in zip(opt.param_groups, bases, strict=True):
            g["lr"] = base * schedule(step, stage.horizon, stage.warm)
        for kind, batch, weight in batches(rng, stage):
            loss = batch_loss(model, batch)
            (loss * weight).backward()
            losses[kind] = 0.9 * losses.get(kind, loss.item()) + 0.1 * loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        label = f"{stage.name} {step + 1}"
        if step % 25 == 24:
            shown = " ".join(f"{k}={v:.3f}" for k, v in losses.items())
            log(f"{label}/{stage.steps} {time.time() - t0:.0f}s {shown}")
        if step % 100 == 99 or step == stage.steps - 1:
            log(f"{label} " + show(accuracy(model, 40, TUNING_SEED, f"dev{step}")))
            torch.save(model.state_dict(), work / f"{stage.name}.pt")
            torch.save(opt.state_dict(), work / f"{stage.name}.opt.pt")
            (work / f"{stage.name}.step").write_text(str(step + 1))


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, default=Path("work/micro-vlm"))
    p.add_argument("--tower-steps", type=int, default=2200)
    p.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in --work"
    )
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    tower_path = args.work / "tower.pt"
    if args.resume and tower_path.exists():
        tower = CLIPVisionModel(vision_config())
        tower.load_state_dict(torch.load(tower_path))
    else:
        tower = train_tower(args.tower_steps, 96, tower_path, log)
    torch.manual_seed(1)
    model = build_model(len(tokenizer()), special_ids(), tower)
    for stage in STAGES:
        count = args.work / f"{stage.name}.step"
        done = int(count.read_text()) if args.resume and count.exists() else 0
        if done:
            model.load_state_dict(torch.load(args.work / f"{stage.name}.pt"))
        if done < stage.steps:
            run_stage(model, stage, args.work, done)
    log(f"done; python -m tools.micro_vlm.export {args.work / 'K.pt'}")


if __name__ == "__main__":
    main()
