"""Reads the attributes of a picture of the shapes world (micro-umm) by comparison with renders.

No training. Ground and badge are compared with their colours; the colour of the thing is a vote of
its pixels; shape and size are the best of a few thousand silhouettes; the pattern is the best fit
to the white pixels inside that silhouette. An attribute without a good fit is not read ("").

Verdicts carry the judge's former name, `microworld`. Since version 2 they hold all attributes that
were read, which the metric `rest` compares.

Shapes: S side of a picture, W side of the window in which silhouettes are compared, K silhouettes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from errata.core.errors import BadImage
from errata.core.measure.judge import Judge
from errata.core.text import same_answer
from errata.core.types import Image, JudgeQuestion, Verdict
from errata.io.images import load_image
from errata.synthetic.primitives import coverage, distance
from errata.synthetic.shapes import render
from errata.synthetic.shapes.objects import ATTRIBUTES, ShapeScene

Array = NDArray[np.float64]

#: Rows and columns of the window that holds the thing but no strip and nothing beside it.
LOW, HIGH = 2, 25
#: Largest distance (in RGB) at which a pixel counts for a ground or a colour.
NEAR_GROUND, NEAR_COLOUR = 42.0, (45.0, 75.0)
#: Limits of shares and errors; beyond them an attribute is not read.
LEAST_GROUND, WORST_BADGE, WORST_FIT, LEAST_MARGIN = 0.5, 60.0, 0.09, 0.003


class RenderedShapes(Judge):
    """A program that reads pictures; `view.category` names the attribute that is compared."""

    name: ClassVar[str] = "rendered_shapes"
    verdict_name: ClassVar[str] = "microworld"
    version: ClassVar[str] = "2"

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        return [self._verdict(path, view) for path, view in pictures]

    def _verdict(self, path: Path, view: JudgeQuestion) -> Verdict:
        if view.category not in ATTRIBUTES:
            known = ", ".join(ATTRIBUTES)
            note = f"'{view.category}' is none of the attributes that it reads: {known}"
            return Verdict(self.identity, note=note)
        try:
            picture = np.asarray(load_image(Image(str(path))))
        except BadImage as e:
            return Verdict(self.identity, note=str(e))
        if picture.shape != (render.SIDE, render.SIDE, 3):
            note = f"the picture is {picture.shape[1]} x {picture.shape[0]}, not {render.SIDE} wide"
            return Verdict(self.identity, note=note)
        values = read(picture)
        shown = tuple((a, v) for a, v in values.items() if v and a != view.category)
        answer = values[view.category]
        if not answer:
            note = f"no {view.category} can be read"
            return Verdict(self.identity, note=note, shown=shown)
        meets = same_answer(answer, view.target)
        return Verdict(self.identity, answer=answer, meets=meets, shown=shown)


def read(picture: NDArray[np.uint8]) -> dict[str, str]:
    """Attribute -> value of a picture [S, S, 3]; "" for an attribute that cannot be read."""
    x = picture.astype(float)
    values = dict.fromkeys(ATTRIBUTES, "")
    values["home"], ground = _ground(x)
    values["maker"] = _badge(x)
    colour = _colour(x, ground)
    if colour is None:
        return values
    values["colour"] = colour
    best, sure = _silhouette(x, ground, np.asarray(render.RGB[colour], dtype=float))
    if sure.shape:
        values["shape"] = best.shape
    if sure.size:
        values["size"] = best.size
    if sure.shape or sure.size:
        values["pattern"] = _pattern(x, best, np.asarray(render.RGB[colour], dtype=float))
    return values


# -- ground and badge ---------------------------------------------------------------------------


def _ground(x: Array) -> tuple[str, Array]:
    """(home or "", mean colour of the ground), from the pixels around the thing."""
    pool = np.concatenate(
        [x[2:4, 6:24].reshape(-1, 3), x[6:24, 2:4].reshape(-1, 3), x[6:8, 22:25].reshape(-1, 3)]
    )
    names = list(render.GROUND)
    table = np.asarray([render.GROUND[n] for n in names], dtype=float)
    far = np.linalg.norm(pool[:, None] - table, axis=-1)
    vote = np.where(far.min(1) < NEAR_GROUND, far.argmin(1), len(names))
    counts = np.bincount(vote, minlength=len(names) + 1)
    best = int(counts[:-1].argmax())
    if counts[best] < LEAST_GROUND * len(pool):
        middle: Array = np.median(pool, axis=0)
        return "", middle
    mean: Array = pool[vote == best].mean(axis=0)
    return names[best], mean


def _badge(x: Array) -> str:
    """The maker whose badge is in a corner; "" unless exactly one badge fits."""
    errors: dict[str, float] = {}
    n = render.CORNER
    for maker, (row, column, white) in render.BADGE.items():
        top, left = row * (render.SIDE - n), column * (render.SIDE - n)
        part = x[top : top + n, left : left + n]
        errors[maker] = float(np.abs(part - render.badge(white)).mean())
    good = sorted((e, m) for m, e in errors.items() if e < WORST_BADGE)
    return good[0][1] if len(good) == 1 else ""


# -- the thing ----------------------------------------------------------------------------------


def _colour(x: Array, ground: Array) -> str | None:
    """The most frequent colour in the middle, apart from ground and white; None if unclear."""
    middle = x[6:23, 5:23].reshape(-1, 3)
    table = np.asarray(list(render.RGB.values()), dtype=float)
    far = np.linalg.norm(middle[:, None] - table, axis=-1)
    other = np.minimum(
        np.linalg.norm(middle - ground, axis=-1),
        np.linalg.norm(middle - np.asarray(render.WHITE), axis=-1),
    )
    for near in NEAR_COLOUR:  # mixtures with white come close to other colours
        coloured = (far.min(1) < near) & (far.min(1) < other)
        counts = np.bincount(far.argmin(1)[coloured], minlength=len(table))
        if coloured.sum() >= 8 and counts.max() >= 0.6 * coloured.sum():
            return list(render.RGB)[int(counts.argmax())]
    return None


@dataclass(frozen=True, slots=True)
class _Fit:
    shape: str
    size: str
    x: float
    y: float
    r: float


@dataclass(frozen=True, slots=True)
class _Sure:
    shape: bool
    size: bool


@dataclass(frozen=True, eq=False)
class _Silhouettes:
    """rows: [K, W * W] coverage in the window; squares: [K] its sum of squares."""

    fits: tuple[_Fit, ...]
    rows: Array
    squares: Array
    parts: Mapping[str, NDArray[np.str_]]


@cache
def _silhouettes() -> _Silhouettes:
    yy, xx = np.mgrid[LOW:HIGH, LOW:HIGH].astype(float)
    fits, rows = [], []
    shifts = (-1.0, -0.5, 0.0, 0.5, 1.0)
    for size in ATTRIBUTES["size"]:
        for setting in ("", "table", "tree", "flag", "poster"):
            scene = ShapeScene("red", "disc", "plain", size, setting=setting)
            cx, cy, radius = render.placed(scene)
            for shape in ATTRIBUTES["shape"]:
                for dx in shifts:
                    for dy in shifts:
                        for k in (0.95, 1.0, 1.05):
                            fit = _Fit(shape, size, cx + dx, cy + dy, k * radius)
                            d = distance(shape, xx - fit.x, yy - fit.y, fit.r)
                            fits.append(fit)
                            rows.append(coverage(d).ravel())
    table = np.stack(rows)
    parts = {p: np.asarray([getattr(f, p) for f in fits]) for p in ("shape", "size")}
    return _Silhouettes(tuple(fits), table, (table**2).sum(1), parts)


def _along(x: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """Position of each pixel on the line start -> end (0 to 1), and its distance from it."""
    way = end - start
    t = np.clip((x - start) @ way / max(float(way @ way), 1e-9), 0, 1)
    return t, np.linalg.norm(x - (start + t[..., None] * way), axis=-1)


def _silhouette(x: Array, ground: Array, colour: Array) -> tuple[_Fit, _Sure]:
    """The best silhouette; whether its shape and size are clearly better than all others."""
    window = x[LOW:HIGH, LOW:HIGH].reshape(-1, 3)
    off_ground = np.linalg.norm(window - ground, axis=-1)
    _, off_thing = _along(window, colour, np.asarray(render.WHITE, dtype=float))
    mask = off_ground / np.maximum(off_ground + off_thing, 1e-9)
    table = _silhouettes()
    errors = ((mask**2).sum() - 2 * table.rows @ mask + table.squares) / len(mask)
    best = table.fits[int(errors.argmin())]
    least = float(errors.min())

    def sure(part: str) -> bool:
        others = table.parts[part] != getattr(best, part)
        return least < WORST_FIT and float(errors[others].min()) - least > LEAST_MARGIN

    return best, _Sure(sure("shape"), sure("size"))


@cache
def _whites() -> Mapping[str, tuple[tuple[float, float], ...]]:
    """The shifts at which each pattern is compared: one period in steps of half a pixel."""
    half = np.arange(-2.5, 2.5, 0.5).tolist()
    return {
        "striped": tuple((0.0, y) for y in half),
        "dotted": tuple((x, y) for x in half[:9] for y in half[:9]),
    }


def _pattern(x: Array, fit: _Fit, colour: Array) -> str:
    """The pattern that fits the white pixels inside the silhouette best; "" if unclear."""
    yy, xx = np.mgrid[0 : render.SIDE, 0 : render.SIDE].astype(float)
    inside = distance(fit.shape, xx - fit.x, yy - fit.y, fit.r) < -0.7
    if inside.sum() < 8:
        return ""
    white, _ = _along(x[inside], colour, np.asarray(render.WHITE, dtype=float))
    errors = {"plain": float((white**2).mean())}
    for pattern, shifts in _whites().items():
        errors[pattern] = min(
            float(
                (
                    (
                        white
                        - render.accented(pattern, xx[inside] - fit.x - dx, yy[inside] - fit.y - dy)
                    )
                    ** 2
                ).mean()
            )
            for dx, dy in shifts
        )
    ranked = sorted(errors, key=errors.__getitem__)
    first, second = errors[ranked[0]], errors[ranked[1]]
    return ranked[0] if first < 0.12 and second - first > 0.005 else ""
