"""Trains micro-vlm from nothing on one CPU thread, in about an hour, and writes it as an asset.

Stages: V a supervised vision tower, T the language model on text alone, J everything together
(dense captions, packed questions, in-context rows). `--resume` goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from micro_vlm_data import (
    Batch,
    collate,
    context_row,
    image_row,
    text_row,
    tokenizer,
)
from micro_vlm_model import build_model, vision_config
from micro_vlm_score import accuracy, forward, show
from micro_vlm_tower import train_tower

ASSETS = Path(__file__).resolve().parents[1] / "src" / "errata" / "assets" / "micro-vlm"


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


def schedule(step: int, steps: int, warm: int = 40, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `floor`."""
    if step < warm:
        return (step + 1) / warm
    x = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * x))


Part = tuple[str, Batch, float]


def joint_batches(rng: random.Random, sizes: tuple[int, int, int]) -> list[Part]:
    """One step's batches with their loss weights: images, text, in-context rows."""
    images, texts, contexts = sizes
    out = []
    if images:
        out.append(("image", collate([image_row(rng, 0) for _ in range(images)]), 1.0))
    if texts:
        out.append(("text", collate([text_row(rng) for _ in range(texts)]), 0.4))
    if contexts:
        rows = [context_row(rng, 0) for _ in range(contexts)]
        for with_image in (True, False):
            part = [r for r in rows if (r.scene is not None) == with_image]
            if part:
                out.append(("context", collate(part), 0.5 * len(part) / contexts))
    return out


def run_stage(
    model: nn.Module,
    name: str,
    steps: int,
    lr: float,
    sizes: tuple[int, int, int],
    args: argparse.Namespace,
    start: int = 0,
) -> None:
    opt = optimiser(model, lr, 0.3)
    t0, losses = time.time(), {}
    path = args.work / f"{name}.pt"
    if start:
        opt.load_state_dict(torch.load(args.work / f"{name}.opt.pt"))
    for step in range(start, steps):
        rng = random.Random(f"{name}/{step}")
        for g in opt.param_groups:
            g["lr"] = g["base"] * schedule(step, steps)
        for kind, batch, weight in joint_batches(rng, sizes):
            loss = batch_loss(model, batch)
            (loss * weight).backward()
            losses[kind] = 0.9 * losses.get(kind, loss.item()) + 0.1 * loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        if step % 25 == 24:
            shown = " ".join(f"{k}={v:.3f}" for k, v in losses.items())
            args.log(f"{name} {step + 1}/{steps} {time.time() - t0:.0f}s {shown}")
        if step % 100 == 99 or step == steps - 1:
            args.log(f"{name} {step + 1} " + show(accuracy(model, 40, 1_000_000, f"dev{step}")))
            torch.save(model.state_dict(), path)
            torch.save(opt.state_dict(), args.work / f"{name}.opt.pt")
            (args.work / f"{name}.step").write_text(str(step + 1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, default=Path("work/micro-vlm"))
    p.add_argument("--tower-steps", type=int, default=2200)
    p.add_argument("--text-steps", type=int, default=200)
    p.add_argument("--steps", type=int, default=1600)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--resume", action="store_true")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    args.log = lambda s: print(time.strftime("%H:%M:%S"), s, flush=True)

    tower_path = args.work / "tower.pt"
    if args.resume and tower_path.exists():
        tower = CLIPVisionModel(vision_config())
        tower.load_state_dict(torch.load(tower_path))
    else:
        tower = train_tower(args.tower_steps, 96, tower_path, args.log)

    torch.manual_seed(1)
    model = build_model(len(tokenizer()), special_ids(), tower)
    done = {n: int(f.read_text()) if args.resume and (f := args.work / f"{n}.step").exists() else 0
            for n in ("T", "J")}  # fmt: skip
    if done["T"] and not done["J"]:
        model.load_state_dict(torch.load(args.work / "T.pt"))
    if done["J"]:
        model.load_state_dict(torch.load(args.work / "J.pt"))
    elif done["T"] < args.text_steps:
        run_stage(model, "T", args.text_steps, args.lr, (0, 32, 0), args, done["T"])
    run_stage(model, "J", args.steps, args.lr, (32, 10, 10), args, done["J"])


if __name__ == "__main__":
    main()
