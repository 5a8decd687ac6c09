"""Builds the probes of one edit: what should change, and what should not.

Every builder samples from the `ProbePool` of one split: its appearances, known entities and
far-locality questions. Probes are candidates: the plan may drop some by the model's before-answers,
so there are one or two more than needed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from errata.core.types import Edit, HopQuestion, Image, Probe, Prompt
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


@dataclass(frozen=True, slots=True)
class FarQuestion:
    """One question of a far-locality pool. look: None for a question without a picture."""

    prompt: Prompt
    relation: str
    reference: str
    subject: str
    look: Appearance | None


@dataclass(frozen=True, slots=True)
class ProbePool:
    """What the cases of one split take their probes from."""

    split: str
    looks: tuple[Appearance, ...]
    known: tuple[Entity, ...]
    text_pool: tuple[FarQuestion, ...]
    image_pool: tuple[FarQuestion, ...]


def _question(relation: str, rng: random.Random, subject: str) -> str:
    return lang.ask(relation, rng.choice(lang.wordings(relation)), subject)


def _text_pool(split: str, known: Sequence[Entity], rng: random.Random) -> Iterator[FarQuestion]:
    for e in known:
        for r in (*world.IDENTITY, *TEXT_ONLY):
            if e.taught(r) and e.fact(r) != world.NO_ACCENT:
                prompt = Prompt.of(_question(r, rng, e.name))
                yield FarQuestion(prompt, r, e.fact(r), e.name, None)
    owners = ("train", "dev", "eval", "train")
    for i, city in enumerate(world.cities()):
        if owners[i % 4] == split:
            text = _question("country", rng, city)
            yield FarQuestion(Prompt.of(text), "country", world.country_of()[city], city, None)


def _image_pool(looks: Sequence[Appearance], rng: random.Random, n: int) -> Iterator[FarQuestion]:
    for _ in range(n):
        look = rng.choice(looks)
        entity = world.entity_of().get(look)
        options = [*VISIBLE, "caption"]
        if look.accent == world.NO_ACCENT:
            options.remove("accent")
        if entity:
            options += [r for r in ("name", *TEXT_ONLY) if entity.taught(r)]
        relation = rng.choice(options)
        scene = new_scene(look, rng)
        text = _question(relation, rng, rng.choice(lang.POINTERS))
        if relation == "caption":
            text = lang.CAPTION
        reference = truth(scene, relation)
        assert reference is not None
        prompt = Prompt.of(text, image_of(scene))
        yield FarQuestion(prompt, relation, reference, entity.name if entity else "", look)


@cache
def probe_pool(split: str) -> ProbePool:
    """The pool of a split. It holds no looks of withheld entities, which cannot test locality."""
    looks = tuple(
        look
        for look in world.looks()
        if world.triple_split()[look.triple] == split and teachable(look, "shape")
    )
    known = world.known_entities(split)
    rng = random.Random(f"{world.WORLD_SEED}/pool/{split}")
    text = tuple(_text_pool(split, known, rng))
    images = tuple(_image_pool(looks, rng, 800 if split == "train" else 400))
    return ProbePool(split, looks, known, text, images)


@cache
def _apart(split: str, look: Appearance, distance: int) -> tuple[Appearance, ...]:
    """The looks of a split at this distance from `look`; distance 3 means two or more."""
    gap = {k: k.distance(look) for k in probe_pool(split).looks}
    return tuple(k for k, d in gap.items() if d == distance or (distance == 3 and d >= 2))


@cache
def _closest(split: str, look: Appearance) -> tuple[Entity, ...]:
    """The known entities of a split, nearest look first."""
    return tuple(sorted(probe_pool(split).known, key=lambda e: (e.look.distance(look), e.name)))


@dataclass(frozen=True, slots=True)
class ProbeBuilder:
    """One edit, for the functions that build probes. fixed: free attributes that must not vary."""

    scene: ObjectScene
    relation: str
    text: str
    pointer: str
    target: str
    old: str | None
    changed: str
    fixed: frozenset[str]

    @property
    def entity(self) -> Entity | None:
        return world.entity_of().get(self.scene.look)

    @property
    def name(self) -> str:
        return self.entity.name if self.entity else ""

    def edit(self, case_id: str) -> Edit:
        subject = None if self.relation == "caption" else self.pointer
        prompt = Prompt.of(self.text, image_of(self.scene))
        return Edit(prompt, self.target, subject, self.old, case_id)


class ProbeList:
    """Collects probes with ids that are unique in a case; a repeated prompt is not added."""

    def __init__(self) -> None:
        self.probes: list[Probe] = []
        self._prompts: set[tuple[str, Prompt]] = set()

    def add(
        self, kind: str, group: str, prompt: Prompt, reference: str, hop: HopQuestion | None = None
    ) -> bool:
        if (kind, prompt) in self._prompts:
            return False
        self._prompts.add((kind, prompt))
        n = sum(p.kind == kind and p.group == group for p in self.probes)
        label = f"{kind}/{group}/{n}" if group else f"{kind}/{n}"
        self.probes.append(Probe(label, prompt, kind, group, reference, hop))
        return True


def generality(ask: ProbeBuilder, split: str, rng: random.Random, out: ProbeList) -> None:
    """The edited question, other wordings of it (trained and reserved), and other renders."""
    image = image_of(ask.scene)
    out.add("reliability", "", Prompt.of(ask.text, image), ask.target)
    for group, owner in (("seen", lang.SEEN), ("unseen", split)):
        options = lang.wordings(ask.relation, owner)
        texts = [lang.ask(ask.relation, w, ask.pointer) for w in options]
        for text in rng.sample([t for t in texts if t != ask.text], 2):
            out.add("t_generality", group, Prompt.of(text, image), ask.target)
    vary = [a for a in world.FREE if a not in ask.fixed]
    for _ in range(3):
        drawn = new_scene(ask.scene.look, rng)
        kept = {a: ask.scene.get(a) for a in ask.fixed}
        moved = rng.choice(vary)
        kept[moved] = rng.choice([v for v in world.VALUES[moved] if v != ask.scene.get(moved)])
        out.add("m_generality", "", Prompt.of(ask.text, image_of(drawn.varied(**kept))), ask.target)


def far(ask: ProbeBuilder, pool: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """Questions that share no picture, relation or subject with the edit."""
    count = 0
    for i in rng.sample(pool.text_pool, 40):
        if i.relation != ask.relation and i.reference != ask.target and i.subject != ask.name:
            count += out.add("t_locality", "far", i.prompt, i.reference)
        if count == 2:
            break
    count = 0
    for i in rng.sample(pool.image_pool, 60):
        assert i.look is not None
        apart = i.look.distance(ask.scene.look) >= 3
        if apart and i.relation != ask.relation and i.reference != ask.target:
            count += out.add("m_locality", "far", i.prompt, i.reference)
        if count == 2:
            break


def near(ask: ProbeBuilder, home: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """The same question about things that differ in one or two attributes, and about names."""
    for distance in (1, 2):
        options = list(_apart(home.split, ask.scene.look, distance))
        rng.shuffle(options)
        if distance == 1:
            options.sort(key=lambda k: k.triple == ask.scene.look.triple, reverse=True)
        count = 0
        for look in options:
            if count == 3:
                break
            if not teachable(look, ask.relation):
                continue
            scene = ask.scene.varied(look=look)
            right = truth(scene, ask.relation)
            if right is None or right == ask.target:
                continue
            prompt = Prompt.of(ask.text, image_of(scene))
            count += out.add("near_locality", f"near{distance}", prompt, right)
    if ask.relation in (*world.IDENTITY, *world.FACTS):
        close = (
            e
            for e in _closest(home.split, ask.scene.look)
            if e.name != ask.name
            and e.taught(ask.relation)
            and e.fact(ask.relation) not in (ask.target, world.NO_ACCENT)
        )
        for e in itertools.islice(close, 3):
            text = _question(ask.relation, rng, e.name)
            out.add("near_locality", "neighbour", Prompt.of(text), e.fact(ask.relation))


#: Attributes that depend on each other: a plain thing has no accent.
_TIED = frozenset({"pattern", "accent"})


def same_image(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """Other questions about the same picture; their answers do not depend on the edited fact."""
    if ask.relation == "caption":
        options = ["size", "background", *(["accent"] if ask.changed not in _TIED else [])]
    else:
        options = [a for a in VISIBLE if a != ask.relation and {a, ask.relation} != _TIED]
    options = [a for a in options if truth(ask.scene, a) not in (None, ask.target)]
    chosen = rng.sample(options, min(2, len(options)))
    entity = ask.entity
    if entity and entity.known and ask.relation in world.FACTS:
        others = [r for r in rng.sample(world.FACTS, 4) if r != ask.relation and entity.taught(r)]
        chosen += others[:1]
    for r in chosen:
        right = truth(ask.scene, r)
        assert right is not None
        text = _question(r, rng, ask.pointer)
        out.add("near_locality", "same_image", Prompt.of(text, image_of(ask.scene)), right)


def same_answer(ask: ProbeBuilder, home: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """The same question about other things whose true answer is the edit's old answer."""
    if ask.old is None or ask.relation in ("caption", "name"):
        return
    options = list(_apart(home.split, ask.scene.look, 3))
    rng.shuffle(options)
    count = 0
    for look in options:
        if count == 2:
            break
        if not teachable(look, ask.relation):
            continue
        scene = new_scene(look, rng)
        if ask.relation in world.FREE:
            scene = scene.varied(**{ask.relation: ask.old})
        if truth(scene, ask.relation) == ask.old:
            prompt = Prompt.of(ask.text, image_of(scene))
            count += out.add("near_locality", "same_answer", prompt, ask.old)


def _replaced(scene: ObjectScene, attribute: str, value: str) -> ObjectScene | None:
    """The scene with one attribute changed; None if the result is another named thing."""
    if attribute in world.FREE:
        return scene.varied(**{attribute: value})
    items = dict(scene.look.items()) | {attribute: value}
    if (items["pattern"] == "plain") != (items["accent"] == world.NO_ACCENT):
        return None
    look = Appearance(**items)
    return None if look in world.entity_of() else scene.varied(look=look)


def portability(ask: ProbeBuilder, home: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """Questions whose answer follows from the new fact, with the hop that the model must know."""
    image = image_of(ask.scene)
    if ask.relation == "home":
        country = world.country_of()[ask.target]
        hop = HopQuestion(Prompt.of(_question("country", rng, ask.target)), country)
        for _ in range(2):
            text = _question("country", rng, ask.pointer)
            out.add("portability", "", Prompt.of(text, image), country, hop)
    elif ask.relation == "name":
        for e in home.known:
            if e.name == ask.target:
                for r in [r for r in rng.sample(world.FACTS, 4) if e.taught(r)][:2]:
                    hop = HopQuestion(Prompt.of(_question(r, rng, e.name)), e.fact(r))
                    text = _question(r, rng, ask.pointer)
                    out.add("portability", "", Prompt.of(text, image), e.fact(r), hop)
    elif ask.relation in lang.MENTIONED and ask.entity is None:
        scene = _replaced(ask.scene, ask.relation, ask.target)
        if scene:
            caption = lang.caption(scene, None)
            hop = HopQuestion(Prompt.of(lang.CAPTION, image_of(scene)), caption)
            out.add("portability", "", Prompt.of(lang.CAPTION, image), caption, hop)
    elif ask.relation == "caption" and ask.changed in lang.MENTIONED and ask.entity is None:
        _caption_portability(ask, rng, out)


def _caption_portability(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """After a false caption: a direct question about the changed attribute."""
    value = next(
        v
        for v in world.VALUES[ask.changed]
        if lang.caption(ask.scene, None, {ask.changed: v}) == ask.target
    )
    scene = _replaced(ask.scene, ask.changed, value)
    if scene:
        text = _question(ask.changed, rng, rng.choice(lang.POINTERS))
        hop = HopQuestion(Prompt.of(text, image_of(scene)), value)
        out.add("portability", "", Prompt.of(text, image_of(ask.scene)), value, hop)


def all_probes(
    ask: ProbeBuilder, home: ProbePool, pool: ProbePool, rng: random.Random
) -> tuple[Probe, ...]:
    """Every probe of one edit. home: pool of the edit's split; pool: source of far locality.

    Far probes are sampled last, so that the two variants differ in nothing else.
    """
    out = ProbeList()
    generality(ask, home.split, rng, out)
    near(ask, home, rng, out)
    same_image(ask, rng, out)
    same_answer(ask, home, rng, out)
    portability(ask, home, rng, out)
    far(ask, pool, rng, out)
    return tuple(out.probes)
