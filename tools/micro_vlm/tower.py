"""Stage V: the vision tower learns to name every attribute, from the pooled and from every token.

Heads on every token make the whole look readable wherever the language model attends, which is what
lets the later stages start from a tower that is already good.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from errata.synthetic.objects import render, world
from tools.micro_vlm.model import pixels, vision_config

ATTRIBUTES = (*world.IDENTITY, *world.FREE)


def draw_scene(rng: random.Random, first_seed: int = 0) -> world.ObjectScene:
    """A training scene: half show a known entity, half a generic look; withheld looks never."""
    if rng.random() < 0.5:
        look = rng.choice(world.known_entities()).look
    else:
        look = rng.choice(world.generic_looks())
    return world.random_scene(look, rng, first_seed + rng.randrange(1_000_000))


def label(scene: world.ObjectScene, attribute: str) -> int:
    """The class of an attribute, or -100 where it has none (the accent of a plain thing)."""
    if attribute == "entity":
        e = world.entity_of().get(scene.look)
        return world.known_entities().index(e) if e else -100
    value = scene.get(attribute)
    return world.VALUES[attribute].index(value) if value in world.VALUES[attribute] else -100


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = {a: len(world.VALUES[a]) for a in ATTRIBUTES}
        self.sizes["entity"] = len(world.known_entities())
        n = sum(self.sizes.values())
        self.pooled, self.token = nn.Linear(128, n), nn.Linear(128, n)

    def loss(self, h: Tensor, y: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """h [B, 25, 128] -> the summed cross entropies of both heads, and the pooled accuracies."""
        parts = list(self.sizes.values())
        pooled = self.pooled(h.mean(1)).split(parts, -1)
        token = self.token(h).split(parts, -1)
        total, acc = h.new_zeros(()), {}
        for (a, n), p, t in zip(self.sizes.items(), pooled, token, strict=True):
            keep = y[a] >= 0
            if not keep.any():
                continue
            total = total + F.cross_entropy(p[keep], y[a][keep])
            ty = y[a][keep, None].expand(-1, t.shape[1]).reshape(-1)
            total = total + F.cross_entropy(t[keep].reshape(-1, n), ty)
            acc[a] = float((p[keep].argmax(-1) == y[a][keep]).float().mean())
            acc[a + "*"] = float((t[keep].reshape(-1, n).argmax(-1) == ty).float().mean())
        return total, acc


def tower_batch(rng: random.Random, n: int, first_seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    scenes = [draw_scene(rng, first_seed) for _ in range(n)]
    x = pixels(np.stack([render.render(s) for s in scenes]))
    names = (*ATTRIBUTES, "entity")
    return x, {a: torch.tensor([label(s, a) for s in scenes]) for a in names}


def train_tower(steps: int, batch: int, out: Path, log: Callable[[str], None]) -> CLIPVisionModel:
    rng = random.Random("tower")
    torch.manual_seed(0)
    tower, heads = CLIPVisionModel(vision_config()), Heads()
    params = [*tower.parameters(), *heads.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1.5e-3, total_steps=steps, pct_start=0.08)
    start = time.time()
    for step in range(steps):
        x, y = tower_batch(rng, batch, 0)
        h = tower(pixel_values=x).last_hidden_state[:, 1:]
        loss, acc = heads.loss(h, y)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        sched.step()
        if step % 100 == 99 or step == 5:
            shown = " ".join(f"{k}={100 * v:.0f}" for k, v in acc.items())
            log(f"V {step + 1} {time.time() - start:.0f}s loss {loss.item():.2f} {shown}")
        if step % 500 == 499 or step == steps - 1:
            torch.save(tower.state_dict(), out)
    with torch.no_grad():
        x, y = tower_batch(random.Random("tower-test"), 1000, 1_000_000)
        _, acc = heads.loss(tower(pixel_values=x).last_hidden_state[:, 1:], y)
    log("V test " + " ".join(f"{k}={100 * v:.1f}" for k, v in acc.items()))
    return tower
