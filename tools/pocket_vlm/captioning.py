"""Stage A, without the language model: the tower tells flags apart, then says a caption.

First two heads, which are thrown away, name the flag from the tower's output. Then image token i
learns the embedding of the i-th token of "... This is the flag of X.", so that the language model
can read it from the first step of stage B on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.benchmarks._countries import COUNTRIES
from tools.pocket_vlm.augment import augmented, plain
from tools.pocket_vlm.data import Drawings, captions, ids_of
from tools.pocket_vlm.model import Eye

#: how much more a token of the name counts than another one of the caption
NAME_WEIGHT = 6.0
#: of the heads, once the words are learned too
HEADS_WEIGHT = 0.3


class Words:
    """The embeddings of the captions' words."""

    def __init__(self, embedding: Tensor) -> None:
        ids = captions()
        self.used, slots = ids.unique(return_inverse=True)
        self.vectors = embedding[self.used].float()
        self.slots = slots  # [countries, IMAGE_TOKENS] rows of `vectors`
        self.size = float(self.vectors.square().sum(-1).mean())
        self.weights = torch.ones(slots.shape)
        for i, country in enumerate(COUNTRIES):  # the last token is the full stop
            self.weights[i, -1 - len(ids_of(f" {country.name}")) : -1] = NAME_WEIGHT

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """out [n, IMAGE_TOKENS, width]: cross entropy over the words, and distance to the right."""
        right = self.slots[labels]
        scores = out @ self.vectors.T
        far = (out - self.vectors[right]).square().sum(-1) / self.size
        wrong = F.cross_entropy(scores.transpose(1, 2), right, reduction="none")
        return (self.weights[labels] * (wrong + far)).mean()

    def nearest(self, out: Tensor) -> Tensor:
        """[n] the country whose whole caption is closest."""
        whole = self.vectors[self.slots].flatten(1)
        return torch.cdist(out.flatten(1), whole).argmin(-1)


@torch.no_grad()
def named(eye: Eye, words: Words, drawings: Drawings) -> float:
    """The share of drawings whose caption is the closest of all."""
    out = torch.cat([eye(plain(x)) for x in drawings.pictures.split(64)])
    return float((words.nearest(out) == drawings.labels).float().mean())


class Heads(nn.Module):
    """Name the flag from the mean of the tower's output and from each token of it; thrown away."""

    def __init__(self, width: int, countries: int) -> None:
        super().__init__()
        self.pooled, self.token = nn.Linear(width, countries), nn.Linear(width, countries)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """features [n, IMAGE_TOKENS, width]."""
        each = labels[:, None].expand(features.shape[:2])
        token = F.cross_entropy(self.token(features).flatten(0, 1), each.flatten())
        return F.cross_entropy(self.pooled(features.mean(1)), labels) + token

    @torch.no_grad()
    def named(self, eye: Eye, drawings: Drawings) -> float:
        out = torch.cat([eye.features(plain(x)) for x in drawings.pictures.split(96)])
        return float((self.pooled(out.mean(1)).argmax(-1) == drawings.labels).float().mean())


@dataclass(frozen=True, slots=True)
class Part:
    """A part of stage A. rates: highest learning rates of tower and projector."""

    name: str
    steps: int
    rates: tuple[float, float]

    @property
    def captions(self) -> bool:
        return self.rates[1] > 0


def run(
    part: Part,
    eye: Eye,
    heads: Heads,
    words: Words,
    trained: Drawings,
    watched: Mapping[str, Drawings],
    batch: int,
    log: Callable[[str], None],
) -> None:
    """Trains in place; `watched` are drawings by source whose accuracy is logged."""
    gen = torch.Generator().manual_seed(part.steps)
    groups = eye.groups(tower=part.rates[0], projector=part.rates[1])
    groups[0]["params"] += list(heads.parameters())
    groups = groups if part.captions else groups[:1]
    opt = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    sched = torch.optim.lr_scheduler.OneCycleLR(
        opt, [group["lr"] for group in groups], total_steps=part.steps, pct_start=0.1
    )
    start, seen = time.time(), 0.0
    for step in range(part.steps):
        pick = torch.randint(len(trained), (batch,), generator=gen)
        labels = trained.labels[pick]
        with torch.autocast("cpu", torch.bfloat16):
            features = eye.features(augmented(trained.pictures[pick], gen))
            tokens = eye.projector(features) if part.captions else None
        loss = heads.loss(features.float(), labels)
        if tokens is not None:
            loss = HEADS_WEIGHT * loss + words.loss(tokens.float(), labels)
        opt.zero_grad()
        loss.backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        opt.step()
        sched.step()
        seen = 0.95 * seen + 0.05 * loss.item() if step else loss.item()
        if step % 50 == 49 or step == part.steps - 1:
            shown = f"{part.name} {step + 1}/{part.steps} {time.time() - start:.0f}s {seen:.3f}"
            if step % 200 == 199 or step == part.steps - 1:
                eye.eval()
                for source, drawings in watched.items():
                    right = named(eye, words, drawings) if part.captions else -1
                    shown += f" {source}={100 * heads.named(eye, drawings):.1f}/{100 * right:.1f}"
                eye.train()
            log(shown)
