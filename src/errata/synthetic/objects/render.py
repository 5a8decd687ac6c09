"""Draws a scene of the objects world as a 40 x 40 RGB image, with numpy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from errata.synthetic.objects import world
from errata.synthetic.objects.world import ObjectScene
from errata.synthetic.primitives import coverage, distance, dots, stripes, to_bytes

Array = NDArray[np.float64]

SIDE = 40
RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (214, 40, 40),
        "orange": (242, 140, 30),
        "yellow": (240, 222, 50),
        "green": (50, 160, 60),
        "cyan": (60, 200, 215),
        "blue": (45, 80, 215),
        "purple": (135, 50, 170),
        "pink": (246, 150, 195),
        "white": (252, 252, 252),
        "black": (8, 8, 8),
        "brown": (115, 60, 20),
        "mint": (140, 255, 170),
        "grey": (128, 128, 128),
        "navy": (28, 38, 92),
        "beige": (216, 200, 164),
        "teal": (0, 92, 88),
        "plum": (72, 24, 50),
    }
)
_RADIUS: Mapping[str, float] = MappingProxyType({"big": 12.5, "small": 8.8})
_OFFSET: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"left": (-7, 0), "right": (7, 0), "top": (0, -7), "bottom": (0, 7), "centre": (0, 0)}
)


def _accented(pattern: str, x: Array, y: Array, d: Array) -> Array:
    """Mask of the part of the object that takes the accent colour."""
    if pattern == "striped":
        return stripes(y, period=5.5, half_width=1.2)
    if pattern == "dotted":
        return dots(x, y, period=5.0, radius=1.5)
    if pattern == "checked":
        same = ((x + 100.0) // 4.5 + (y + 100.0) // 4.5) % 2
        return np.asarray(same, dtype=float)
    if pattern == "rimmed":
        return np.clip(0.5 + 1.5 + d, 0, 1)
    assert pattern == "plain", pattern
    return np.zeros_like(x)


def render(scene: ObjectScene) -> NDArray[np.uint8]:
    """The scene as [40, 40, 3] bytes. Equal scenes give equal bytes."""
    rng = np.random.default_rng(scene.seed)
    dx, dy = rng.uniform(-1, 1, 2)
    r = _RADIUS[scene.size] * rng.uniform(0.96, 1.04)
    ox, oy = _OFFSET[scene.position]
    yy, xx = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    x, y = xx - (SIDE - 1) / 2 - ox - dx, yy - (SIDE - 1) / 2 - oy - dy
    look = scene.look
    d = distance(look.shape, x, y, r)
    inside = coverage(d)[..., None]
    tint = rng.uniform(-8, 8, (2, 3))
    body = np.asarray(RGB[look.colour]) + tint[0]
    if look.pattern != "plain":
        a = _accented(look.pattern, x, y, d)[..., None]
        body = body * (1 - a) + np.asarray(RGB[look.accent]) * a
    ground = np.asarray(RGB[scene.background]) + tint[1]
    image = (ground * (1 - inside) + body * inside) * (scene.light / world.FULL_LIGHT)
    return to_bytes(image + rng.normal(0, 3, (SIDE, SIDE, 3)))
