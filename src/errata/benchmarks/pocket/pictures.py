"""The drawings of the benchmark `pocket`: sheets of flags in `drawings/`, one per source.

`drawings/LICENSES.md` names artists and licences.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from errata.benchmarks._countries import COUNTRIES
from errata.core.errors import BadImage
from errata.core.types import Image

#: pixels of a drawing, and drawings in a row of a sheet
SIDE, COLUMNS = 96, 16
#: Sources that pocket-vlm was trained on, and others that it never saw.
TRAINED, HELD_OUT = ("twemoji", "flag-icons"), ("noto", "circle-flags")
SOURCES = (*TRAINED, *HELD_OUT)
_PLACES = {country.code: i for i, country in enumerate(COUNTRIES)}


def sheet_file(source: str) -> Path:
    folder = files("errata") / "benchmarks" / "pocket" / "drawings"
    return Path(str(folder / f"{source}.png"))


@cache
def _sheet(source: str) -> Pillow.Image:
    return Pillow.open(sheet_file(source)).convert("RGB")


def image_of(source: str, code: str) -> Image:
    """The flag of a country, by its code, as a source draws it."""
    spec = f"{source}/{code}"
    return Image(f"pocket:{spec}", hashlib.sha256(spec.encode()).hexdigest())


def picture(spec: str) -> Pillow.Image:
    """RGB, SIDE x SIDE, of `source/code`. Raises BadImage."""
    source, _, code = spec.partition("/")
    if source not in SOURCES or code not in _PLACES:
        raise BadImage(
            f"pocket has no picture '{spec[:60]}'. Write pocket:SOURCE/CODE with a source of "
            f"{', '.join(SOURCES)} and the two letters of a country, such as pocket:noto/fr."
        )
    row, column = divmod(_PLACES[code], COLUMNS)
    left, top = column * SIDE, row * SIDE
    return _sheet(source).crop((left, top, left + SIDE, top + SIDE))


@cache
def closest(code: str) -> tuple[str, ...]:
    """The codes of all other countries, the most similar flag first (as `flag-icons` draws it)."""
    looks = _looks()
    far = np.square(looks - looks[_PLACES[code]]).sum(-1)
    order = (COUNTRIES[i].code for i in np.argsort(far, kind="stable"))
    return tuple(c for c in order if c != code)


@cache
def _looks() -> NDArray[np.float64]:
    """[countries, 8 * 8 * 3]: every flag, coarsely."""
    small = (picture(f"flag-icons/{c.code}").resize((8, 8)) for c in COUNTRIES)
    return np.stack([np.asarray(p, dtype=np.float64).ravel() for p in small])
