"""Which things, wordings, towns and values a split of the benchmark may use.

Since version 2 the train split holds back what eval asks about, so that a score there is no recall:

- things: no two splits share a (shape, colour, pattern) triple (as in version 1);
- towns: every country, with its towns, belongs to one split, and so does every other fact that a
  portability question leads to;
- one colour, one shape and two question templates are kept out of train and dev, and out of eval.
  The variant `unseen` of eval holds the things that have one, asked in those templates; the variant
  `all` holds every thing of eval, in the usual templates; `consequences` those of its cases that
  have a portability question.

The variant `v1` gives the cases of version 1, for runs that were begun with it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.language import ObjectWording
from errata.synthetic.objects.world import Appearance, Entity

HELD_BACK: Mapping[str, str] = MappingProxyType({"colour": "red", "shape": "triangle"})
#: "What {n} has {s}?" and "About {s}: the {n}?"; every reserved group of wordings keeps two others
TEMPLATES = frozenset({6, 11})
#: of captions: "the ... showing"
FRAMES = frozenset({4})

#: Brightness of pictures that show a thing in another light. The unedited model names colour and
#: shape in all of these as well as in the usual light.
LIGHTS = (90, 95, 105, 110, 115)


#: How many of the eight countries each split has.
_DEAL = {"train": 4, "dev": 2, "eval": 2}


@cache
def split_of_country() -> Mapping[str, str]:
    order = random.Random(f"{world.WORLD_SEED}/hops").sample(world.COUNTRIES, len(world.COUNTRIES))
    owners = [split for split, n in _DEAL.items() for _ in range(n)]
    return MappingProxyType(dict(zip(order, owners, strict=True)))


@dataclass(frozen=True, slots=True)
class Slice:
    """A split in one of its variants."""

    split: str
    variant: str = "disjoint"

    @property
    def first_version(self) -> bool:
        return self.variant == "v1"

    def shows(self, look: Appearance) -> bool:
        """Whether a thing may be seen or named here at all."""
        return self.variant in ("v1", "unseen", "all") or not held_back(look)

    def edits(self, look: Appearance) -> bool:
        """Whether a thing is edited here."""
        if world.triple_split()[look.triple] != self.split:
            return False
        return held_back(look) if self.variant == "unseen" else self.shows(look)

    def known(self) -> tuple[Entity, ...]:
        return tuple(e for e in world.known_entities(self.split) if self.shows(e.look))

    def wordings(self, relation: str, group: str = lang.SEEN) -> tuple[ObjectWording, ...]:
        """As `language.wordings`: in `unseen`, the templates that are held back elsewhere."""
        options = lang.wordings(relation, group)
        if self.first_version:
            return options
        rare = FRAMES if relation == "caption" else TEMPLATES
        wanted = self.variant == "unseen"
        if wanted and group != lang.SEEN:
            return options
        return tuple(w for w in options if (w.template in rare) == wanted)

    def town_is_ours(self, town: str) -> bool:
        """Whether (town, country) belongs to this split; in version 1 to all of them."""
        return self.first_version or split_of_country()[world.country_of()[town]] == self.split

    def towns(self) -> tuple[str, ...]:
        return tuple(t for t in world.cities() if self.town_is_ours(t))

    def values(self, relation: str) -> tuple[str, ...]:
        """The values that an edit may ask for."""
        if relation == "home":
            return self.towns()
        if relation == "name":
            return tuple(e.name for e in self.known())
        rare = HELD_BACK.get(relation) if self.variant in ("disjoint", "published") else None
        return tuple(v for v in world.values(relation) if v != rare)

    def owns(self, look: Appearance) -> bool:
        """Whether facts about a thing of this look belong to this split."""
        return world.triple_split()[look.triple] == self.split and self.shows(look)


def held_back(look: Appearance) -> bool:
    return any(getattr(look, a) == v for a, v in HELD_BACK.items())
