"""What both worlds draw with: shapes as signed distances, coverage, stripes and dots.

Distances are in pixels, negative inside. A mask has values from 0 to 1. Any change here changes the
pixels that the bundled models were trained on (tests/unit/synthetic/test_pixels.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def distance(shape: str, x: Array, y: Array, r: float) -> Array:
    """Signed distance (approximate outside corners) to a shape of radius r at the origin."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "disc":
        return np.hypot(x, y) - 0.95 * r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.66 * r) - 0.32 * r
    if shape == "square":
        return np.maximum(ax, ay) - 0.82 * r
    if shape == "cross":
        h, w = 0.98 * r, 0.38 * r
        return np.minimum(np.maximum(ax - h, ay - w), np.maximum(ay - h, ax - w))
    if shape == "triangle":
        return np.maximum(y - 0.75 * r, 0.89 * ax - 0.45 * y - 0.46 * r)
    assert shape == "bowtie", shape
    return np.maximum(ax - 0.95 * r, 0.71 * (ay - ax) - 0.06 * r)


def coverage(distances: Array) -> Array:
    """Share of each pixel that lies inside: anti-aliasing that is good enough for small images."""
    return np.clip(0.5 - distances, 0, 1)


def stripes(y: Array, period: float, half_width: float) -> Array:
    """Mask of horizontal stripes."""
    return np.clip(0.5 + half_width - np.abs((y + 100.0) % period - period / 2), 0, 1)


def dots(x: Array, y: Array, period: float, radius: float) -> Array:
    """Mask of round dots on a square grid."""
    shift = 100.0 + period / 2
    u, v = (x + shift) % period - period / 2, (y + shift) % period - period / 2
    return np.clip(0.5 + radius - np.hypot(u, v), 0, 1)


def to_bytes(image: Array) -> NDArray[np.uint8]:
    """Rounds colour values to 0 ... 255."""
    out: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return out
