"""Attribution: which modules speak for the answer, and which image tokens it is read from.

Source: the motivation of VisEdit (Chen et al., AAAI 2025) and its code at 26419f2.

Modules: the output of every attention and FFN at the last prompt token is put through the final
norm and the head; v is the logit, p the probability of the token that the model will say. Per
question v is divided by the largest |v|, and the score is sign(v) |v|^(1/2) p^(1/2).

Image tokens: noise (sigma 0.7, 10 draws) on a window of (2 r + 1)^2 of them at the input of an
attention module; 1 - cosine of its clean and noisy output at the last prompt token.

Shapes: P prompts, L blocks, N image tokens, V vocabulary, d stream width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.core.backbone import Backbone
from errata.core.errors import BadSpec
from errata.core.types import Prompt
from errata.finding.gradient import generator
from errata.finding.influence import noise_influence
from errata.finding.watch import Watch

MODULES = ("attn", "mlp")
CHUNK = 32


@torch.no_grad()
def module_attribution(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    """[P, L, 2] scores of each block's attention and FFN (`MODULES`), one question per row."""
    sites = [f"text.{i}.{m}" for i in range(backbone.depth) for m in MODULES]
    out = []
    for start in range(0, len(prompts), CHUNK):
        batch = backbone.encode(prompts[start : start + CHUNK])
        watch = Watch(sites)
        with backbone.applied(watch):
            said_B = backbone.logits(batch)[:, 0].argmax(-1)
        rows = torch.arange(batch.size, device=batch.ids.device)
        states = [watch.y[s][rows, batch.lengths - 1] for s in sites]
        read = [_read(backbone, x).gather(1, said_B[:, None])[:, 0] for x in states]
        value_BS = torch.stack(read, dim=1)
        probability_BS = torch.stack(
            [_read(backbone, x).softmax(-1)[rows, said_B] for x in states], dim=1
        )
        scores = module_scores(value_BS, probability_BS)
        out.append(scores.reshape(batch.size, backbone.depth, len(MODULES)).cpu())
    return torch.cat(out)


def module_scores(value_PS: Tensor, probability_PS: Tensor) -> Tensor:
    """sign(v) |v|^(1/2) p^(1/2) with v relative to the largest |v| of its row."""
    largest = value_PS.abs().amax(1, keepdim=True).clamp(min=1e-12)
    relative = value_PS / largest
    return relative.sign() * (relative.abs() * probability_PS).sqrt()


def _read(backbone: Backbone, x_Bd: Tensor) -> Tensor:
    """[B, V] logits of a state, through the final norm and the head."""
    normed = backbone.wires.call("final_norm", x_Bd)
    return backbone.wires.call("head", normed).float()


def windows(grid: tuple[int, int], radius: int) -> list[Tensor]:
    """For each cell of a grid, row by row, the cells of the square around it that exist."""
    height, width = grid
    cells = torch.arange(height * width).reshape(height, width)
    found = []
    for i in range(height):
        for j in range(width):
            part = cells[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            found.append(part.flatten())
    return found


def grid_of(count: int) -> tuple[int, int]:
    """The sides of a square grid of `count` image tokens. Raises BadSpec where it is none."""
    side = math.isqrt(count)
    if side * side != count:
        raise BadSpec(
            f"the picture has {count} tokens, which is no square. Give the grid as (rows, columns)."
        )
    return side, side


def visual_attribution(
    backbone: Backbone,
    prompt: Prompt,
    layers: Sequence[int],
    *,
    radius: int = 1,
    sigma: float = 0.7,
    draws: int = 10,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Tensor:
    """[len(layers), rows, columns] influence of the window around each token of the one image.

    Raises BadSpec for a prompt without exactly one image, or a grid that does not fit it.
    """
    if len(prompt.images) != 1:
        raise BadSpec(f"attribution needs one image; the prompt has {len(prompt.images)}.")
    columns = backbone.encode([prompt]).vision[0].nonzero()[:, 0].cpu()
    grid = grid or grid_of(len(columns))
    if grid[0] * grid[1] != len(columns):
        raise BadSpec(f"a grid of {grid[0]} x {grid[1]} does not fit {len(columns)} image tokens.")
    places = [columns[cells] for cells in windows(grid, radius)]
    found = [backbone.layer(i) for i in layers]
    out = torch.zeros(len(found), len(places))
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        rows = backbone.encode([prompt] * (1 + len(some)))
        rng = generator(seed, "attribution", start)
        each = noise_influence(
            backbone, rows, some, layers=found, sigma=sigma, draws=draws, rng=rng
        )
        out[:, start : start + CHUNK] = torch.stack([each[i] for i in found])
    return out.reshape(len(found), *grid)
