"""Builds the probes of one edit: what should change, and what should not.

Every builder samples from the `ProbePool` of one slice: its appearances, known entities and
far-locality questions. Probes are candidates: the plan may drop some by the model's before-answers,
so there are one or two more than needed.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from errata.benchmarks.microworld import topics
from errata.benchmarks.microworld.pools import (
    VISIBLE,
    ProbePool,
    apart,
    closest,
    image_of,
    new_scene,
    other_light,
    question,
    teachable,
    truth,
)
from errata.benchmarks.microworld.slices import Slice
from errata.core.kinds import ProbeKind
from errata.core.types import Edit, HopQuestion, Probe, Prompt
from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.world import Appearance, Entity, ObjectScene

CROSS_MODAL = ProbeKind(
    "cross_modal",
    "Cross-modal",
    "The edited question in the other modality is answered with the target.",
    "cross",
    label="other modality",
    groups=(
        ("by_name", "an edit made at a picture, asked in text by the name of the thing"),
        ("at_picture", "an edit made in text, asked at a picture of the thing"),
    ),
)


@dataclass(frozen=True, slots=True)
class ProbeBuilder:
    """One edit, for the functions that build probes.

    fixed: free attributes that must not vary. part: where the edit belongs to. pictured: whether
    the edit is made at the picture; if not, in text, and the picture only shows the thing.
    """

    scene: ObjectScene
    relation: str
    text: str
    pointer: str
    target: str
    old: str | None
    changed: str
    fixed: frozenset[str]
    part: Slice
    pictured: bool = True

    @property
    def entity(self) -> Entity | None:
        return world.entity_of().get(self.scene.look)

    @property
    def name(self) -> str:
        return self.entity.name if self.entity else ""

    def edit(self, case_id: str) -> Edit:
        subject = None if self.relation == "caption" else self.pointer
        prompt = Prompt.of(self.text, image_of(self.scene) if self.pictured else None)
        return Edit(prompt, self.target, subject, self.old, case_id)

    def about(self, relation: str = "") -> tuple[str, ...]:
        """What a question about the edited thing depends on: the edited one, or another."""
        if self.entity and not self.pictured:
            return topics.by_name(self.entity, relation or self.relation)
        return topics.at_picture(self.scene, relation or self.relation)


class ProbeList:
    """Collects probes with ids that are unique in a case; a repeated prompt is not added."""

    def __init__(self, declares: bool = True) -> None:
        """declares: whether the probes say what they depend on (since version 2)."""
        self._declares = declares
        self.probes: list[Probe] = []
        self._prompts: set[tuple[str, Prompt]] = set()

    def add(
        self,
        kind: str,
        group: str,
        prompt: Prompt,
        reference: str,
        about: tuple[str, ...],
        hop: HopQuestion | None = None,
    ) -> bool:
        if (kind, prompt) in self._prompts:
            return False
        self._prompts.add((kind, prompt))
        n = sum(p.kind == kind and p.group == group for p in self.probes)
        label = f"{kind}/{group}/{n}" if group else f"{kind}/{n}"
        custom = CROSS_MODAL if kind == CROSS_MODAL.name else None
        if hop is not None and not self._declares:
            hop = HopQuestion(hop.prompt, hop.reference)
        about = about if self._declares else ()
        self.probes.append(
            Probe(label, prompt, kind, group, reference, hop, custom_kind=custom, depends_on=about)
        )
        return True


def reworded(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """The edited question, and other wordings of it, trained and reserved."""
    image = image_of(ask.scene) if ask.pictured else None
    out.add("reliability", "", Prompt.of(ask.text, image), ask.target, ask.about())
    for group, owner in (("seen", lang.SEEN), ("unseen", ask.part.split)):
        options = ask.part.wordings(ask.relation, owner)
        texts = [lang.ask(ask.relation, w, ask.pointer) for w in options]
        for text in rng.sample([t for t in texts if t != ask.text], 2):
            out.add("t_generality", group, Prompt.of(text, image), ask.target, ask.about())


def other_views(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """The edited question about other pictures of the thing: pose, size and (since 2) light."""
    vary = [a for a in world.FREE if a not in ask.fixed]
    for _ in range(3):
        drawn = new_scene(ask.scene.look, rng)
        kept = {a: ask.scene.get(a) for a in ask.fixed}
        moved = rng.choice(vary)
        kept[moved] = rng.choice([v for v in world.VALUES[moved] if v != ask.scene.get(moved)])
        view = drawn.varied(**kept)
        if not ask.part.first_version:
            view = other_light(view, rng)
        prompt = Prompt.of(ask.text, image_of(view))
        out.add("m_generality", "", prompt, ask.target, topics.at_picture(view, ask.relation))


def far(ask: ProbeBuilder, pool: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """Questions that share no picture, relation or subject with the edit."""
    count = 0
    for i in rng.sample(pool.text_pool, 40):
        if i.relation != ask.relation and i.reference != ask.target and i.subject != ask.name:
            count += out.add("t_locality", "far", i.prompt, i.reference, i.depends_on)
        if count == 2:
            break
    count = 0
    for i in rng.sample(pool.image_pool, 60):
        assert i.look is not None
        distant = i.look.distance(ask.scene.look) >= 3
        if distant and i.relation != ask.relation and i.reference != ask.target:
            count += out.add("m_locality", "far", i.prompt, i.reference, i.depends_on)
        if count == 2:
            break


def near(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """The same question about things that differ in one or two attributes.

    In `near1` and `near2` the rest of the picture is that of the edit. In `near1_moved` (since
    version 2) a thing that differs in one attribute also has another pose, size and light, as the
    pictures of M-generality have: likeness of the pictures does not tell the two apart.
    """
    for distance in (1, 2):
        _near(ask, f"near{distance}", _in_order(ask, distance, rng), None, out)
    if not ask.part.first_version:
        _near(ask, "near1_moved", _in_order(ask, 1, rng), rng, out, 2)


def _in_order(ask: ProbeBuilder, distance: int, rng: random.Random) -> list[Appearance]:
    options = list(apart(ask.part, ask.scene.look, distance))
    rng.shuffle(options)
    if distance == 1:
        options.sort(key=lambda k: k.triple == ask.scene.look.triple, reverse=True)
    return options


def _near(
    ask: ProbeBuilder,
    group: str,
    options: list[Appearance],
    moved: random.Random | None,
    out: ProbeList,
    most: int = 3,
) -> None:
    count = 0
    for look in options:
        if count == most:
            break
        if not teachable(look, ask.relation):
            continue
        scene = ask.scene.varied(look=look)
        if moved is not None:
            kept = {a: ask.scene.get(a) for a in ask.fixed}
            scene = other_light(new_scene(look, moved).varied(**kept), moved)
        right = truth(scene, ask.relation)
        if right is None or right == ask.target:
            continue
        prompt = Prompt.of(ask.text, image_of(scene))
        about = topics.at_picture(scene, ask.relation)
        count += out.add("near_locality", group, prompt, right, about)


def neighbours(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """The same question in text about other named things that look similar."""
    if ask.relation not in (*world.IDENTITY, *world.FACTS):
        return
    close = (
        e
        for e in closest(ask.part, ask.scene.look)
        if e.name != ask.name
        and e.taught(ask.relation)
        and e.fact(ask.relation) not in (ask.target, world.NO_ACCENT)
    )
    for e in itertools.islice(close, 3):
        prompt = Prompt.of(question(ask.part, ask.relation, rng, e.name))
        about = topics.by_name(e, ask.relation)
        out.add("near_locality", "neighbour", prompt, e.fact(ask.relation), about)


def same_image(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """Other questions about the same picture; their answers do not depend on the edited fact."""
    if ask.relation == "caption":
        options = ["size", "background", *(["accent"] if ask.changed not in topics.TIED else [])]
    else:
        options = [a for a in VISIBLE if a != ask.relation and {a, ask.relation} != topics.TIED]
    options = [a for a in options if truth(ask.scene, a) not in (None, ask.target)]
    chosen = rng.sample(options, min(2, len(options)))
    entity = ask.entity
    if entity and entity.known and ask.relation in world.FACTS:
        others = [r for r in rng.sample(world.FACTS, 4) if r != ask.relation and entity.taught(r)]
        chosen += others[:1]
    for r in chosen:
        right = truth(ask.scene, r)
        assert right is not None
        prompt = Prompt.of(question(ask.part, r, rng, ask.pointer), image_of(ask.scene))
        out.add("near_locality", "same_image", prompt, right, topics.at_picture(ask.scene, r))


def same_subject(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """Other facts of the edited thing, at another picture of it and by its name.

    Their answers do not depend on the edited fact: a name brings the facts of its owner, so after
    an edit of the name only what is seen is asked.
    """
    scene = other_light(new_scene(ask.scene.look, rng), rng)
    tied = topics.TIED if ask.changed in topics.TIED else frozenset({ask.changed})
    mentioned = lang.MENTIONED if ask.relation == "caption" else ()
    seen = [a for a in VISIBLE if a not in tied and a not in mentioned]
    for r in rng.sample(seen, len(seen)):
        right = truth(scene, r)
        if right not in (None, ask.target) and teachable(scene.look, r):
            prompt = Prompt.of(
                question(ask.part, r, rng, rng.choice(lang.POINTERS)), image_of(scene)
            )
            about = topics.at_picture(scene, r)
            if out.add("near_locality", "same_subject", prompt, right or "", about):
                break
    entity = ask.entity
    if entity is None or "name" in (ask.relation, ask.changed):
        return
    for r in rng.sample(world.FACTS, len(world.FACTS)):
        if r != ask.relation and entity.taught(r) and entity.fact(r) != ask.target:
            prompt = Prompt.of(question(ask.part, r, rng, entity.name))
            about = topics.by_name(entity, r)
            out.add("near_locality", "same_subject", prompt, entity.fact(r), about)
            break


def by_name(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """An edit at a picture, asked in text by the name that the model knows the thing by."""
    entity = ask.entity
    if entity is None or not entity.known or ask.relation not in (*world.IDENTITY, *world.FACTS):
        return
    for w in rng.sample(ask.part.wordings(ask.relation), 2):
        prompt = Prompt.of(lang.ask(ask.relation, w, entity.name))
        about = topics.by_name(entity, ask.relation)
        out.add(CROSS_MODAL.name, "by_name", prompt, ask.target, about)


def same_answer(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """The same question about other things whose true answer is the edit's old answer."""
    if ask.old is None or ask.relation in ("caption", "name"):
        return
    options = list(apart(ask.part, ask.scene.look, 3))
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
            about = topics.at_picture(scene, ask.relation)
            count += out.add("near_locality", "same_answer", prompt, ask.old, about)


def replaced(part: Slice, scene: ObjectScene, attribute: str, value: str) -> ObjectScene | None:
    """The scene with one attribute changed; None if the result is another named thing.

    Since version 2 also if it belongs to another split: what such a thing looks like is then the
    second fact of a hop, which no two splits share.
    """
    if attribute in world.FREE:
        return scene.varied(**{attribute: value})
    items = dict(scene.look.items()) | {attribute: value}
    if (items["pattern"] == "plain") != (items["accent"] == world.NO_ACCENT):
        return None
    look = Appearance(**items)
    if look in world.entity_of() or not (part.first_version or part.owns(look)):
        return None
    return scene.varied(look=look)


def portability(ask: ProbeBuilder, home: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """Questions whose answer follows from the new fact, with the hop that the model must know."""
    image = image_of(ask.scene) if ask.pictured else None
    if ask.relation == "home" and ask.part.town_is_ours(ask.target):
        country = world.country_of()[ask.target]
        text = question(ask.part, "country", rng, ask.target)
        hop = HopQuestion(Prompt.of(text), country, topics.of_town(ask.target))
        for _ in range(2):
            prompt = Prompt.of(question(ask.part, "country", rng, ask.pointer), image)
            out.add("portability", "", prompt, country, ask.about("country"), hop)
    elif ask.relation == "name":
        for e in home.known:
            if e.name == ask.target:
                for r in [r for r in rng.sample(world.FACTS, 4) if e.taught(r)][:2]:
                    text = question(ask.part, r, rng, e.name)
                    hop = HopQuestion(Prompt.of(text), e.fact(r), topics.by_name(e, r))
                    prompt = Prompt.of(question(ask.part, r, rng, ask.pointer), image)
                    out.add("portability", "", prompt, e.fact(r), ask.about(r), hop)
    elif ask.relation in lang.MENTIONED and ask.entity is None:
        scene = replaced(ask.part, ask.scene, ask.relation, ask.target)
        if scene:
            caption = lang.caption(scene, None)
            about = topics.at_picture(scene, "caption")
            hop = HopQuestion(Prompt.of(lang.CAPTION, image_of(scene)), caption, about)
            prompt = Prompt.of(lang.CAPTION, image)
            out.add("portability", "", prompt, caption, ask.about("caption"), hop)
    elif ask.relation == "caption" and ask.changed in lang.MENTIONED and ask.entity is None:
        _caption_portability(ask, rng, out)


def _caption_portability(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    """After a false caption: a direct question about the changed attribute."""
    value = next(
        v
        for v in world.VALUES[ask.changed]
        if lang.caption(ask.scene, None, {ask.changed: v}) == ask.target
    )
    scene = replaced(ask.part, ask.scene, ask.changed, value)
    if scene:
        text = question(ask.part, ask.changed, rng, rng.choice(lang.POINTERS))
        about = topics.at_picture(scene, ask.changed)
        hop = HopQuestion(Prompt.of(text, image_of(scene)), value, about)
        prompt = Prompt.of(text, image_of(ask.scene))
        out.add("portability", "", prompt, value, ask.about(ask.changed), hop)


def all_probes(
    ask: ProbeBuilder, home: ProbePool, pool: ProbePool, rng: random.Random
) -> tuple[Probe, ...]:
    """Every probe of an edit at a picture. home: pool of its slice; pool: source of far locality.

    Far probes are sampled last, so that the variants of train differ in nothing else.
    """
    out = ProbeList(declares=not ask.part.first_version)
    reworded(ask, rng, out)
    other_views(ask, rng, out)
    near(ask, rng, out)
    neighbours(ask, rng, out)
    same_image(ask, rng, out)
    same_answer(ask, rng, out)
    if not ask.part.first_version:
        same_subject(ask, rng, out)
        by_name(ask, rng, out)
    portability(ask, home, rng, out)
    far(ask, pool, rng, out)
    return tuple(out.probes)
