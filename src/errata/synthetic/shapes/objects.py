"""The shapes world: 80 named objects with six facts each, and scenes.

Four facts are looks (colour, shape, pattern, size). Two are relations that every picture of the
object shows: `home` is the colour of the ground, `maker` a badge in a corner. Three quarters of the
objects are `drawn`: the model is trained on pictures of them. It learns the facts of the others
from text only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
        "shape": ("disc", "square", "triangle", "ring", "cross", "bowtie"),
        "pattern": ("plain", "striped", "dotted"),
        "size": ("big", "small"),
        "home": (
            *("Norland", "Nordale", "Estland", "Estdale"),
            *("Avaria", "Quorra", "Tessaly", "Umber"),
        ),
        "maker": (
            *("Orlin", "Orbeck", "Harlin", "Harbeck"),
            *("Tavish", "Wendover", "Pym", "Jask"),
        ),
    }
)
LOOKS = ("colour", "shape", "pattern", "size")
RELATIONS = ("home", "maker")

#: Names of one token, and the parts of the longer ones (first and last part, some with a middle).
WHOLE = tuple(
    "blick dax fep gorp hux jeft kiv lorp mib nuk plim quib rax snerg toma veb wug zorch brum clof "
    "drin frop glim hask jum klee lunt mork noz prel ruvo skiff tweg vash welp yarn zeb bront "
    "crale dwim flom grint glaw holp jarn kelf munt norb pask rilf sprat trink vimp".split()
)
PARTS = (("bel", "dor", "kan", "mir", "tol", "ras"), ("vek", "zin", "mop", "fut", "gar"), "uma")

#: stage -> the settings that a picture of that stage may have
SETTINGS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        1: ("",),
        2: ("table", "lawn", "rink"),
        3: ("tree", "lamp", "stone"),
        4: ("flag", "poster", "stamp"),
    }
)
STAGE_OF: Mapping[str, int] = MappingProxyType({s: i for i, ss in SETTINGS.items() for s in ss})


@dataclass(frozen=True, slots=True)
class ShapeObject:
    """A named thing and its facts. drawn: whether pictures of it are used in training."""

    name: str
    colour: str
    shape: str
    pattern: str
    size: str
    home: str
    maker: str
    drawn: bool


@dataclass(frozen=True, slots=True)
class ShapeScene:
    """What a picture shows. home "": grey ground; maker "": no badge; setting "": the thing alone.

    seed: a small random shift, tint and noise. Equal scenes give equal pictures.
    """

    colour: str
    shape: str
    pattern: str
    size: str
    home: str = ""
    maker: str = ""
    setting: str = ""
    seed: int = 0


def fact(thing: ShapeObject, attribute: str) -> str:
    """The true value of one of ATTRIBUTES."""
    assert attribute in ATTRIBUTES, attribute
    value: str = getattr(thing, attribute)
    return value


def scene_of(thing: ShapeObject, setting: str = "", seed: int = 0, **stated: str) -> ShapeScene:
    """The thing in a setting; `stated` values replace those of the thing."""
    values = {a: stated.get(a, fact(thing, a)) for a in ATTRIBUTES}
    return ShapeScene(**values, setting=setting, seed=seed)


def _names(rng: random.Random) -> list[tuple[str, bool]]:
    """80 names, each with `drawn`: the same share for single-token and composed names."""
    firsts, lasts, middle = PARTS
    pairs = [(f, e) for f in firsts for e in lasts]
    rng.shuffle(pairs)
    joined = [f + (middle if k % 5 == 0 else "") + e for k, (f, e) in enumerate(pairs[:27])]
    whole = list(WHOLE)
    out = []
    for names in (whole, joined):
        rng.shuffle(names)
        out += [(n, k % 4 != 0) for k, n in enumerate(names)]
    return out


def _balanced(values: tuple[str, ...], n: int, rng: random.Random) -> list[str]:
    out = [values[k % len(values)] for k in range(n)]
    rng.shuffle(out)
    return out


def _objects() -> tuple[ShapeObject, ...]:
    rng = random.Random("objects")
    names = _names(rng)
    objects = []
    for drawn in (True, False):
        group = [n for n, d in names if d == drawn]
        columns = {a: _balanced(v, len(group), rng) for a, v in ATTRIBUTES.items()}
        for k, name in enumerate(group):
            objects.append(ShapeObject(name, **{a: c[k] for a, c in columns.items()}, drawn=drawn))
    rng.shuffle(objects)
    return tuple(objects)


OBJECTS = _objects()
