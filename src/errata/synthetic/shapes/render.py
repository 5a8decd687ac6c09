"""Draws a scene of the shapes world as a 30 x 30 RGB picture, with numpy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from errata.synthetic.primitives import coverage, distance, dots, stripes, to_bytes
from errata.synthetic.shapes.objects import STAGE_OF, ShapeScene

Array = NDArray[np.float64]
Bytes = NDArray[np.uint8]

SIDE, CORNER = 30, 5
RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (220, 35, 35),
        "orange": (245, 140, 25),
        "yellow": (240, 225, 50),
        "green": (50, 170, 60),
        "cyan": (60, 205, 220),
        "blue": (45, 80, 225),
        "purple": (140, 50, 180),
        "pink": (248, 150, 200),
    }
)
#: home -> the colour of the ground; "" is the ground of a scene without a home
GROUND: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "": (178, 178, 178),
        "Norland": (20, 30, 95),
        "Nordale": (0, 85, 85),
        "Estland": (80, 20, 60),
        "Estdale": (105, 60, 25),
        "Avaria": (95, 105, 25),
        "Quorra": (8, 8, 8),
        "Tessaly": (85, 105, 150),
        "Umber": (165, 130, 105),
    }
)
#: maker -> (corner: row, column; whether the badge is white with a black heart, or the reverse)
BADGE: Mapping[str, tuple[int, int, bool]] = MappingProxyType(
    {
        "Orlin": (0, 0, True),
        "Orbeck": (0, 1, True),
        "Harlin": (1, 0, True),
        "Harbeck": (1, 1, True),
        "Tavish": (0, 0, False),
        "Wendover": (0, 1, False),
        "Pym": (1, 0, False),
        "Jask": (1, 1, False),
    }
)
WHITE, BLACK = (250, 250, 250), (5, 5, 5)
_STRIP = MappingProxyType({"table": (135, 90, 50), "lawn": (40, 120, 40), "rink": (235, 240, 250)})
_BESIDE = MappingProxyType(
    {"tree": (30, 110, 40), "lamp": (250, 235, 150), "stone": (110, 110, 115)}
)
RADIUS: Mapping[str, float] = MappingProxyType({"big": 10.2, "small": 6.6})


def placed(scene: ShapeScene) -> tuple[float, float, float]:
    """(x, y, radius) of the thing before its small random shift."""
    stage, centre, r = STAGE_OF[scene.setting], (SIDE - 1) / 2, RADIUS[scene.size]
    if stage == 2:
        return centre, centre - 1.5, r
    if stage == 3:
        return centre - 3.0, centre, r
    if stage == 4:
        return centre + (1.0 if scene.setting == "flag" else 0.0), centre, 0.85 * r
    return centre, centre, r


def accented(pattern: str, x: Array, y: Array) -> Array:
    """Mask of the white part of the thing; x and y are measured from its centre."""
    if pattern == "striped":
        return stripes(y, period=5.0, half_width=1.1)
    if pattern == "dotted":
        return dots(x, y, period=4.5, radius=1.2)
    assert pattern == "plain", pattern
    return np.zeros_like(x)


def badge(white: bool) -> Bytes:
    """[5, 5, 3] a maker's badge."""
    out = np.empty((CORNER, CORNER, 3), dtype=np.uint8)
    out[:], out[1:-1, 1:-1] = (WHITE, BLACK) if white else (BLACK, WHITE)
    return out


def _set(image: Array, setting: str) -> None:
    """Paints the setting, before the thing is drawn over it."""
    if setting in _STRIP:
        image[SIDE - CORNER :] = _STRIP[setting]
    elif setting == "tree":
        image[9:16, 25:] = _BESIDE[setting]
        image[16:23, 27:28] = (90, 55, 25)
    elif setting == "lamp":
        image[8:12, 25:] = _BESIDE[setting]
        image[12:23, 27:28] = (40, 40, 40)
    elif setting == "stone":
        image[16:22, 25:] = _BESIDE[setting]
    elif setting == "flag":
        image[:, 0:2] = (225, 200, 130)
    elif setting == "poster":
        image[:2], image[-2:], image[:, :2], image[:, -2:] = [(225, 225, 235)] * 4
    elif setting == "stamp":
        k = np.arange(SIDE) % 4 < 2
        image[0][k], image[-1][k] = [(225, 225, 235)] * 2
        image[:, 0][k], image[:, -1][k] = [(225, 225, 235)] * 2


def render(scene: ShapeScene) -> Bytes:
    """The scene as [30, 30, 3] bytes. Equal scenes give equal bytes."""
    rng = np.random.default_rng(scene.seed)
    cx, cy, r = placed(scene)
    dx, dy = rng.uniform(-0.5, 0.5, 2)
    r *= rng.uniform(0.97, 1.03)
    yy, xx = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    x, y = xx - cx - dx, yy - cy - dy
    tint = rng.uniform(-7, 7, (2, 3))
    image = np.broadcast_to(np.asarray(GROUND[scene.home]) + tint[0], (SIDE, SIDE, 3)).copy()
    _set(image, scene.setting)
    inside = coverage(distance(scene.shape, x, y, r))[..., None]
    white = accented(scene.pattern, x, y)[..., None]
    body = (np.asarray(RGB[scene.colour]) + tint[1]) * (1 - white) + np.asarray(WHITE) * white
    image = image * (1 - inside) + body * inside
    if scene.maker:
        row, column, kind = BADGE[scene.maker]
        top, left = row * (SIDE - CORNER), column * (SIDE - CORNER)
        image[top : top + CORNER, left : left + CORNER] = badge(kind)
    image += rng.normal(0, 2.5, image.shape)
    return to_bytes(image)
