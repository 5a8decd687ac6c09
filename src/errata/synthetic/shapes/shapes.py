"""Shapes as signed distance functions: negative inside, in pixels."""

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
