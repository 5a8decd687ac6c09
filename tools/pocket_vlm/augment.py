"""Training pictures: drawings on a background, moved, stretched, waved, cut and recoloured."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.pocket_vlm.model import MEAN, SIDE, STD


def _uniform(n: int, low: float, high: float, gen: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=gen)


def _chance(n: int, share: float, gen: torch.Generator) -> Tensor:
    return torch.rand(n, generator=gen) < share


def _grid(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where each pixel is taken from ([n, SIDE, SIDE, 2]), and the shade of the waves."""
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    x, y = x.expand(n, -1, -1), y.expand(n, -1, -1)
    turn = _uniform(n, -0.16, 0.16, gen)[:, None, None]
    zoom_x = _uniform(n, 0.85, 1.35, gen)[:, None, None]
    zoom_y = zoom_x * torch.exp(_uniform(n, -0.5, 0.25, gen))[:, None, None]
    shear = _uniform(n, -0.12, 0.12, gen)[:, None, None]
    dx, dy = (_uniform(n, -0.15, 0.15, gen)[:, None, None] for _ in range(2))
    u = (x * turn.cos() - y * turn.sin()) * zoom_x + dx
    v = (x * turn.sin() + y * turn.cos() + shear * x) * zoom_y + dy
    high = (_uniform(n, 0.0, 0.12, gen) * _chance(n, 0.5, gen))[:, None, None]
    waves = _uniform(n, 0.5, 1.3, gen)[:, None, None] * math.pi
    phase = _uniform(n, 0.0, 2 * math.pi, gen)[:, None, None]
    v = v + high * torch.sin(waves * u + phase)
    shade = 1 + 2.0 * high * torch.cos(waves * u + phase)
    return torch.stack((u, v), -1), shade


def _backgrounds(n: int, gen: torch.Generator) -> Tensor:
    """[n, 3, SIDE, SIDE]: half of them white or nearly so, the others any colour, also uneven."""
    plain = torch.rand(n, 3, 1, 1, generator=gen).expand(-1, -1, SIDE, SIDE)
    rough = F.interpolate(torch.rand(n, 3, 3, 3, generator=gen), SIDE, mode="bilinear")
    white = (1 - 0.1 * torch.rand(n, 1, 1, 1, generator=gen)).expand_as(plain)
    kind = torch.rand(n, 1, 1, 1, generator=gen)
    return torch.where(kind < 0.5, white, torch.where(kind < 0.75, plain, rough))


def _recoloured(x: Tensor, gen: torch.Generator) -> Tensor:
    n = len(x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(n, 0.6, 1.4, gen)[:, None, None, None]
    x = (x - 0.5) * _uniform(n, 0.7, 1.2, gen)[:, None, None, None] + 0.5
    x = x * (1 + 0.15 * (2 * torch.rand(n, 3, 1, 1, generator=gen) - 1))
    x = x + _uniform(n, -0.12, 0.12, gen)[:, None, None, None]
    mix = torch.eye(3) + 0.06 * torch.randn(n, 3, 3, generator=gen)
    return torch.einsum("nij,njhw->nihw", mix, x)


def _rounded(alpha: Tensor, gen: torch.Generator) -> Tensor:
    """Some of the drawings cut out as discs."""
    n, _, side, _ = alpha.shape
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    far = line[None, :] ** 2 + line[:, None] ** 2
    reach = _uniform(n, 0.4, 0.55, gen)[:, None, None, None]
    disc = alpha * (far < reach)
    return torch.where(_chance(n, 0.2, gen)[:, None, None, None], disc, alpha)


def augmented(drawings: Tensor, gen: torch.Generator) -> Tensor:
    """RGBA bytes [n, 4, S, S] -> what the tower takes, [n, 3, SIDE, SIDE]."""
    n = len(drawings)
    x = drawings.float() / 255
    alpha = _rounded(x[:, 3:], gen)
    grid, shade = _grid(n, gen)
    moved = F.grid_sample(torch.cat((x[:, :3] * alpha, alpha), 1), grid, align_corners=False)
    colour, alpha = moved[:, :3] * shade[:, None], moved[:, 3:]
    out = _recoloured(colour + (1 - alpha) * _backgrounds(n, gen), gen)
    out = out + 0.03 * torch.randn(out.shape, generator=gen)
    soft = F.avg_pool2d(out, 3, 1, 1)
    out = torch.where(_chance(n, 0.25, gen)[:, None, None, None], soft, out).clamp(0, 1)
    return (out - MEAN) / STD


def plain(drawings: Tensor) -> Tensor:
    """RGBA bytes [n, 4, S, S] on white, unchanged, as the tower takes them."""
    x = drawings.float() / 255
    x = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]
    x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - MEAN) / STD
