"""The objects world, on which micro-vlm is trained: looks, named entities, facts and splits.

Everything is derived from one fixed seed, so the world is the same on every machine. A look
(`Appearance`) identifies a thing: shape, colour, pattern, accent. A scene shows one look at some
size, position and background. Looks are divided among the splits by their (shape, colour, pattern)
triple, so no two splits share a triple. A look belongs to a known entity (the model is trained on
its name and facts), to a withheld entity (never in training), or is generic (without a name).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from errata.core.errors import BadImage

WORLD_SEED = "microworld-1"

SHAPES = ("disc", "square", "triangle", "ring", "cross", "bowtie")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
PATTERNS = ("plain", "striped", "dotted", "checked", "rimmed")
ACCENTS = ("white", "black", "brown", "mint")
NO_ACCENT = "none"
SIZES = ("big", "small")
POSITIONS = ("left", "right", "top", "bottom", "centre")
BACKGROUNDS = ("grey", "navy", "beige", "teal", "plum")

#: The attributes that identify a thing, in the order of `Appearance`.
IDENTITY = ("shape", "colour", "pattern", "accent")
#: The attributes of a scene that do not identify the thing.
FREE = ("size", "position", "background")

VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": SHAPES,
        "colour": COLOURS,
        "pattern": PATTERNS,
        "accent": ACCENTS,
        "size": SIZES,
        "position": POSITIONS,
        "background": BACKGROUNDS,
        "maker": (
            "Orlin", "Tavish", "Bexley", "Quarrin", "Hollin", "Pemberly",
            "Rusk", "Wendover", "Yarrow", "Ashby", "Corvin", "Dunmore",
        ),
        "food": (
            "fern soup", "fern bread", "moss soup", "moss pie", "plum pie", "plum jam",
            "oat bread", "oat cake", "nut cake", "nut jam", "rice", "honey",
        ),
        "material": (
            "glass", "clay", "tin", "wool", "oakwood",
            "bone", "silk", "beeswax", "iron", "sandstone",
        ),
    }
)  # fmt: skip

#: Brightness of a picture in per cent: the usual one, and the range.
FULL_LIGHT, DIMMEST, BRIGHTEST = 100, 50, 150

#: The facts of an entity, besides its name and its look.
FACTS = ("home", "maker", "food", "material")
SPLITS = ("train", "dev", "eval", "panel")
_DEAL = {"panel": 12, "eval": 46, "dev": 46}

_FIRST = (
    "Bal", "Bor", "Cal", "Dor", "Dra", "Fen", "Gal", "Gor", "Hal", "Jor", "Kal", "Kir", "Lum",
    "Mar", "Mol", "Nar", "Nim", "Ol", "Pax", "Quo", "Ral", "Rin", "Sal", "Sur", "Tal", "Tor", "Ul",
    "Var", "Wen", "Zor",
)  # fmt: skip
_LAST = (
    "bek", "din", "dax", "fu", "gan", "gor", "ka", "kin", "lop", "mi", "mon", "nab", "nix", "pel",
    "quin", "rak", "ri", "sel", "tan", "thu", "vak", "vex", "wick", "zam",
)  # fmt: skip
_TOWN = (
    "Ald", "Brim", "Crest", "Elder", "Frost", "Glen",
    "Iron", "Lark", "Mill", "Oak", "Raven", "Stone",
)  # fmt: skip
_TOWN_END = ("ford", "ham", "stead", "wick", "mere")
COUNTRIES = (
    "Avaria", "Belmark", "Corland", "Ostland", "Estmark", "Novaria", "Kelland", "Sunmark",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Appearance:
    """The look that identifies a thing. `accent` is `none` exactly for plain things."""

    shape: str
    colour: str
    pattern: str
    accent: str

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.shape, self.colour, self.pattern

    def items(self) -> tuple[tuple[str, str], ...]:
        return tuple((a, getattr(self, a)) for a in IDENTITY)

    def distance(self, other: Appearance) -> int:
        """Number of identity attributes in which two looks differ."""
        return sum(getattr(self, a) != getattr(other, a) for a in IDENTITY)


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing. hidden: facts of a known entity that are left out of training."""

    name: str
    look: Appearance
    facts: tuple[tuple[str, str], ...]
    known: bool
    split: str
    hidden: tuple[str, ...] = ()

    def fact(self, relation: str) -> str:
        """The value of a relation (the country follows from the home)."""
        if relation == "name":
            return self.name
        if relation in IDENTITY:
            return str(getattr(self.look, relation))
        if relation == "country":
            return country_of()[self.fact("home")]
        return dict(self.facts)[relation]

    def taught(self, relation: str) -> bool:
        """Whether the model is trained on this fact."""
        return self.known and ("home" if relation == "country" else relation) not in self.hidden


@dataclass(frozen=True, slots=True)
class ObjectScene:
    """One picture: a look, size, position and background. seed: small shift, scale and noise.

    light: brightness in per cent; the model is trained on 100 only.
    """

    look: Appearance
    size: str
    position: str
    background: str
    seed: int = 0
    light: int = FULL_LIGHT

    def get(self, attribute: str) -> str:
        return str(getattr(self.look if attribute in IDENTITY else self, attribute))

    def spec(self) -> str:
        """The canonical text of the scene, from which it can be rendered again."""
        parts = [f"{a}={self.get(a)}" for a in (*IDENTITY, *FREE)]
        lit = [] if self.light == FULL_LIGHT else [f"light={self.light}"]
        return ",".join([*parts, f"seed={self.seed}", *lit])

    @classmethod
    def parse(cls, spec: str) -> ObjectScene:
        """The inverse of `spec`. Raises BadImage if the text is not a canonical spec."""
        pairs = [p.partition("=") for p in spec.split(",")]
        given = {k: v for k, _, v in pairs}
        keys = (*IDENTITY, *FREE, "seed")
        light = given.pop("light", str(FULL_LIGHT))
        named = tuple(k for k, _, _ in pairs)
        ok = named in (keys, (*keys, "light")) and given["seed"].isdecimal()
        ok = ok and light.isdecimal() and DIMMEST <= int(light) <= BRIGHTEST
        ok = ok and all(
            given[a] in VALUES[a] or (a == "accent" and given[a] == NO_ACCENT) for a in keys[:-1]
        )
        ok = ok and (given["pattern"] == "plain") == (given["accent"] == NO_ACCENT)
        if ok:
            look = Appearance(given["shape"], given["colour"], given["pattern"], given["accent"])
            size, position, background = (given[a] for a in FREE)
            scene = cls(look, size, position, background, int(given["seed"]), int(light))
            if scene.spec() == spec:
                return scene
        wrong = "".join(
            f"{a} is {', '.join(VALUES[a])}. "
            for a in keys[:-1]
            if a in given and given[a] not in (*VALUES[a], *([NO_ACCENT] * (a == "accent")))
        )
        raise BadImage(
            f"cannot read the scene '{spec}'. {wrong}Write {','.join(f'{k}=...' for k in keys)} "
            "with the values of the world (accent=none exactly for pattern=plain), in this order. "
            f"light={DIMMEST} to {BRIGHTEST} may stand behind it."
        )

    def varied(self, **changes: Any) -> ObjectScene:
        """The same scene with some of its parts replaced."""
        return replace(self, **changes)


def looks() -> Iterator[Appearance]:
    """Every look of the world, in a fixed order."""
    for shape, colour, pattern in itertools.product(SHAPES, COLOURS, PATTERNS):
        for accent in ACCENTS if pattern != "plain" else (NO_ACCENT,):
            yield Appearance(shape, colour, pattern, accent)


@cache
def cities() -> tuple[str, ...]:
    rng = random.Random(f"{WORLD_SEED}/cities")
    pairs = [a + b for a, b in itertools.product(_TOWN, _TOWN_END)]
    return tuple(sorted(rng.sample(pairs, 24)))


@cache
def country_of() -> Mapping[str, str]:
    """City -> country, three cities each."""
    order = list(cities())
    random.Random(f"{WORLD_SEED}/countries").shuffle(order)
    return MappingProxyType({c: COUNTRIES[i % len(COUNTRIES)] for i, c in enumerate(order)})


def values(relation: str) -> tuple[str, ...]:
    """All values that a relation can take."""
    if relation == "home":
        return cities()
    if relation == "country":
        return COUNTRIES
    if relation == "name":
        return tuple(e.name for e in entities())
    return VALUES[relation]


@cache
def triple_split() -> Mapping[tuple[str, str, str], str]:
    """(shape, colour, pattern) -> split. No two splits share a triple."""
    order = list(itertools.product(SHAPES, COLOURS, PATTERNS))
    random.Random(f"{WORLD_SEED}/splits").shuffle(order)
    out: dict[tuple[str, str, str], str] = {}
    for split, n in _DEAL.items():
        for _ in range(n):
            out[order.pop()] = split
    return MappingProxyType({**out, **dict.fromkeys(order, "train")})


def _names(n: int) -> list[str]:
    rng = random.Random(f"{WORLD_SEED}/names")
    two = [a + b for a, b in itertools.product(_FIRST, _LAST)]
    three = [a + b + c for a, b, c in itertools.product(_FIRST, _LAST, _LAST) if b != c]
    return list(dict.fromkeys([*rng.sample(two, n * 2 // 3), *rng.sample(three, n)]))


def _roles() -> Iterator[tuple[Appearance, str]]:
    """Gives every look a role: known, withheld or generic.

    Of the four looks of a patterned triple one is generic; of the others one is known and two are
    withheld, or all three are withheld. So looks that differ only in accent have different roles:
    the nearest neighbours of an edited thing are things that the model knows.
    """
    rng = random.Random(f"{WORLD_SEED}/roles")
    by_triple: dict[tuple[str, str, str], list[Appearance]] = {}
    for look in looks():
        by_triple.setdefault(look.triple, []).append(look)
    order = list(by_triple)
    rng.shuffle(order)
    counts: dict[tuple[str, bool], int] = {}
    for triple in order:
        group = by_triple[triple]
        key = (triple_split()[triple], len(group) == 1)
        turn = counts[key] = counts.get(key, -1) + 1
        if len(group) == 1:
            roles = [("generic", "withheld", "generic", "withheld", "known")[turn % 5]]
        else:
            roles = ["generic", "withheld", "withheld", ("known", "withheld")[turn % 2]]
        rng.shuffle(roles)
        yield from zip(group, roles, strict=True)


@cache
def entities() -> tuple[Entity, ...]:
    """All entities, known and withheld, in a fixed order."""
    rng = random.Random(f"{WORLD_SEED}/facts")
    dealt = [(look, role) for look, role in _roles() if role != "generic"]
    names = _names(len(dealt))
    rng.shuffle(names)
    out = []
    for (look, role), name in zip(dealt, names, strict=False):
        facts = tuple((r, rng.choice(values(r))) for r in FACTS)
        known = role == "known"
        split = triple_split()[look.triple]
        hides = known and split != "panel" and rng.random() < 0.3
        out.append(Entity(name, look, facts, known, split, (rng.choice(FACTS),) if hides else ()))
    assert len({e.name for e in out}) == len({e.look for e in out}) == len(out)
    return tuple(out)


@cache
def generic_looks() -> tuple[Appearance, ...]:
    return tuple(look for look, role in _roles() if role == "generic")


@cache
def entity_of() -> Mapping[Appearance, Entity]:
    return MappingProxyType({e.look: e for e in entities()})


def known_entities(split: str | None = None) -> tuple[Entity, ...]:
    return tuple(e for e in entities() if e.known and split in (None, e.split))


def random_scene(look: Appearance, rng: random.Random, seed: int | None = None) -> ObjectScene:
    """A scene of `look` with free attributes drawn from `rng`."""
    size, position, background = (rng.choice(VALUES[a]) for a in FREE)
    if seed is None:
        seed = rng.randrange(1_000_000)
    return ObjectScene(look, size, position, background, seed)
