"""What the cases of one split take their probes from: things, names and far questions."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from errata.benchmarks.microworld import topics
from errata.benchmarks.microworld.slices import LIGHTS, Slice
from errata.core.types import Image, Prompt
from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.world import Appearance, Entity, ObjectScene

VISIBLE = (*world.IDENTITY, *world.FREE)
TEXT_ONLY = (*world.FACTS, "country")

#: The benchmark uses scene seeds from here on; training and the model card use lower ones.
FIRST_SEED = 2_000_000


def image_of(scene: ObjectScene) -> Image:
    spec = scene.spec()
    return Image(f"microworld:{spec}", hashlib.sha256(spec.encode()).hexdigest())


def new_scene(look: Appearance, rng: random.Random) -> ObjectScene:
    return world.random_scene(look, rng, FIRST_SEED + rng.randrange(1_000_000_000))


def other_light(scene: ObjectScene, rng: random.Random) -> ObjectScene:
    return scene.varied(light=rng.choice(LIGHTS))


def truth(scene: ObjectScene, relation: str) -> str | None:
    """The true answer to a question about a picture; None if there is none."""
    entity = world.entity_of().get(scene.look)
    if relation == "caption":
        return lang.caption(scene, entity.name if entity else None)
    if relation in VISIBLE:
        value = scene.get(relation)
        return None if value == world.NO_ACCENT else value
    return entity.fact(relation) if entity else None


def teachable(look: Appearance, relation: str) -> bool:
    """Whether the model is trained on this relation of a look."""
    entity = world.entity_of().get(look)
    if relation in VISIBLE or relation == "caption":
        return entity is None or entity.known
    return entity is not None and entity.taught("home" if relation == "country" else relation)


def question(part: Slice, relation: str, rng: random.Random, subject: str) -> str:
    return lang.ask(relation, rng.choice(part.wordings(relation)), subject)


@dataclass(frozen=True, slots=True)
class FarQuestion:
    """One question of a far-locality pool. look: None for a question without a picture."""

    prompt: Prompt
    relation: str
    reference: str
    subject: str
    look: Appearance | None
    depends_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProbePool:
    """What the cases of one slice take their probes from."""

    part: Slice
    looks: tuple[Appearance, ...]
    known: tuple[Entity, ...]
    text_pool: tuple[FarQuestion, ...]
    image_pool: tuple[FarQuestion, ...]


def _tells(part: Slice, entity: Entity, relation: str) -> bool:
    """Whether a fact of an entity may be asked here; a country of another split may not."""
    ours = relation != "country" or part.split == "panel" or part.town_is_ours(entity.fact("home"))
    return entity.taught(relation) and ours


def _text_pool(part: Slice, known: Sequence[Entity], rng: random.Random) -> Iterator[FarQuestion]:
    for e in known:
        for r in (*world.IDENTITY, *TEXT_ONLY):
            if _tells(part, e, r) and e.fact(r) != world.NO_ACCENT:
                prompt = Prompt.of(question(part, r, rng, e.name))
                yield FarQuestion(prompt, r, e.fact(r), e.name, None, topics.by_name(e, r))
    owners = ("train", "dev", "eval", "train")
    for i, city in enumerate(world.cities()):
        ours = owners[i % 4] == part.split if part.first_version else part.town_is_ours(city)
        if ours and part.split != "panel":
            prompt = Prompt.of(question(part, "country", rng, city))
            country = world.country_of()[city]
            yield FarQuestion(prompt, "country", country, city, None, topics.of_town(city))


def _image_pool(
    part: Slice, looks: Sequence[Appearance], rng: random.Random, n: int
) -> Iterator[FarQuestion]:
    for _ in range(n):
        look = rng.choice(looks)
        entity = world.entity_of().get(look)
        options = [*VISIBLE, "caption"]
        if look.accent == world.NO_ACCENT:
            options.remove("accent")
        if entity:
            options += [r for r in ("name", *TEXT_ONLY) if _tells(part, entity, r)]
        relation = rng.choice(options)
        scene = new_scene(look, rng)
        text = question(part, relation, rng, rng.choice(lang.POINTERS))
        if relation == "caption":
            text = lang.CAPTION
        reference = truth(scene, relation)
        assert reference is not None
        prompt = Prompt.of(text, image_of(scene))
        about = topics.at_picture(scene, relation)
        yield FarQuestion(prompt, relation, reference, entity.name if entity else "", look, about)


@cache
def probe_pool(part: Slice) -> ProbePool:
    """The pool of a slice. It holds no looks of withheld entities, which cannot test locality."""
    looks = tuple(
        look
        for look in world.looks()
        if world.triple_split()[look.triple] == part.split
        and teachable(look, "shape")
        and part.shows(look)
    )
    known = part.known()
    rng = random.Random(f"{world.WORLD_SEED}/pool/{part.split}")
    text = tuple(_text_pool(part, known, rng))
    images = tuple(_image_pool(part, looks, rng, 800 if part.split == "train" else 400))
    return ProbePool(part, looks, known, text, images)


@cache
def apart(part: Slice, look: Appearance, distance: int) -> tuple[Appearance, ...]:
    """The looks of a slice at this distance from `look`; distance 3 means two or more."""
    gap = {k: k.distance(look) for k in probe_pool(part).looks}
    return tuple(k for k, d in gap.items() if d == distance or (distance == 3 and d >= 2))


@cache
def closest(part: Slice, look: Appearance) -> tuple[Entity, ...]:
    """The known entities of a slice, nearest look first."""
    return tuple(sorted(probe_pool(part).known, key=lambda e: (e.look.distance(look), e.name)))
