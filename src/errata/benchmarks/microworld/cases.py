"""The cases of microworld: the edits of its tasks, counterfactual and correction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from errata.benchmarks.microworld import topics
from errata.benchmarks.microworld.pools import (
    TEXT_ONLY,
    VISIBLE,
    image_of,
    new_scene,
    probe_pool,
    truth,
)
from errata.benchmarks.microworld.probes import ProbeBuilder, all_probes, replaced
from errata.benchmarks.microworld.slices import Slice
from errata.benchmarks.microworld.text_edits import text_probes
from errata.core.types import Case, Probe, Prompt
from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.world import Appearance, Entity, ObjectScene

#: How many edits of each (look, asked) a split holds, with different pictures, targets or values.
_REPEATS = {"size": 2, "position": 5, "background": 4, "name": 3, "home": 3}
#: The same of captions, by the attribute that they get wrong; 3 of the others.
_CAPTIONS = {"position": 4}
PANEL_IMAGES, PANEL_TEXTS = 30, 20

Asked = tuple[ProbeBuilder, str, int]
"""An edit, its origin, and which one of its (look, asked) it is."""


def _vqa_asks(
    part: Slice, look: Appearance, entity: Entity | None, rng: random.Random
) -> Iterator[Asked]:
    """Every question about one look: what is seen, of things that the model knows, and facts."""
    relations = [r for r in VISIBLE if r != "accent" or look.accent != world.NO_ACCENT]
    if entity is not None:
        seen = relations if entity.known and not part.first_version else []
        relations = ["name", *world.FACTS, *seen]
    for relation in relations:
        wrong = entity is not None and not _knows(entity, relation)
        repeats = _repeats(part, entity, relation, wrong)
        targets: set[str] = set()
        for k, scene in enumerate(_scenes(part, look, relation, repeats, rng)):
            right = truth(scene, relation)
            assert right is not None
            target = right if wrong else _false(part, scene, relation, right, rng, targets)
            targets.add(target)
            pointer = rng.choice(lang.POINTERS)
            text = lang.ask(relation, rng.choice(part.wordings(relation)), pointer)
            fixed = frozenset({relation} & set(world.FREE))
            old = None if wrong else right
            ask = ProbeBuilder(scene, relation, text, pointer, target, old, relation, fixed, part)
            yield ask, "correction" if wrong else "counterfactual", k


def _knows(entity: Entity, relation: str) -> bool:
    """Whether the model is taught this of a named thing."""
    return entity.known if relation in VISIBLE else entity.taught(relation)


def _repeats(part: Slice, entity: Entity | None, relation: str, wrong: bool) -> int:
    if part.first_version or relation in world.IDENTITY:
        return 2 if entity is None else 1
    return 1 if wrong else _REPEATS.get(relation, 1)


def _scenes(
    part: Slice, look: Appearance, relation: str, repeats: int, rng: random.Random
) -> Iterator[ObjectScene]:
    """Pictures for the edits of one relation: of a free attribute, each with another value."""
    if part.first_version or relation not in world.FREE:
        for _ in range(repeats):
            yield new_scene(look, rng)
        return
    for value in rng.sample(world.VALUES[relation], repeats):
        yield new_scene(look, rng).varied(**{relation: value})


def _false(
    part: Slice,
    scene: ObjectScene,
    relation: str,
    right: str,
    rng: random.Random,
    used: set[str],
) -> str:
    """A wrong value, unused if there is one; where it can be, one that something follows from."""
    options = [v for v in part.values(relation) if v != right]
    if part.first_version:
        return rng.choice(options)
    options = [v for v in options if v not in used] or options
    if relation in lang.MENTIONED and scene.look not in world.entity_of():
        options = [v for v in options if replaced(part, scene, relation, v)] or options
    return rng.choice(options)


def _caption_asks(
    part: Slice, look: Appearance, entity: Entity | None, rng: random.Random
) -> Iterator[Asked]:
    """Every caption edit of one look."""
    name = entity.name if entity else None
    changed = lang.MENTIONED if entity is None else ("name", *lang.MENTIONED)
    wrong = entity is not None and not entity.known
    for attribute in ("name",) if wrong else changed:
        for k in range(1 if wrong else 2 if part.first_version else _CAPTIONS.get(attribute, 3)):
            scene = new_scene(look, rng)
            right = lang.caption(scene, name)
            old = None if wrong else right
            target = right
            if not wrong:
                value = _other(part, scene, attribute, name, rng)
                if value is None:
                    continue
                target = lang.caption(scene, name, {attribute: value})
            fixed = frozenset({"position"})
            text, pointer = _begun(part, rng), lang.POINTERS[0]
            ask = ProbeBuilder(scene, "caption", text, pointer, target, old, attribute, fixed, part)
            yield ask, "correction" if wrong else "counterfactual", k


def _begun(part: Slice, rng: random.Random) -> str:
    if part.variant != "unseen":
        return lang.CAPTION
    return lang.ask("caption", rng.choice(part.wordings("caption")), "")


def _other(
    part: Slice, scene: ObjectScene, attribute: str, name: str | None, rng: random.Random
) -> str | None:
    """What a false caption says of an attribute.

    Since version 2 train and dev describe only things of their own: else their false captions
    would be answers to portability questions of eval. None if there is no such thing.
    """
    right = name if attribute == "name" else scene.get(attribute)
    options = [v for v in part.values(attribute) if v != right]
    if not part.first_version and attribute in world.IDENTITY:
        if name is None:
            follows = [v for v in options if replaced(part, scene, attribute, v)]
            if follows:
                return rng.choice(follows)
        ours = [v for v in options if _triple_is_ours(part, scene.look, attribute, v)]
        options = ours if ours or part.split != "eval" else options
    return rng.choice(options) if options else None


def _triple_is_ours(part: Slice, look: Appearance, attribute: str, value: str) -> bool:
    items = dict(look.items()) | {attribute: value}
    triple = (items["shape"], items["colour"], items["pattern"])
    return world.triple_split()[triple] == part.split


def _text_asks(
    part: Slice, look: Appearance, entity: Entity | None, rng: random.Random
) -> Iterator[Asked]:
    """Edits in text of what the model knows a thing for, or was not taught about one it knows."""
    if entity is None or not entity.known:
        return
    for relation in (*world.FACTS, *world.IDENTITY):
        right = entity.fact(relation)
        if right == world.NO_ACCENT:
            continue
        wrong = not _knows(entity, relation)
        targets: set[str] = set()
        for k in range(1 if wrong else 2):
            scene = new_scene(look, rng)
            target = right if wrong else _false(part, scene, relation, right, rng, targets)
            targets.add(target)
            text = lang.ask(relation, rng.choice(part.wordings(relation)), entity.name)
            ask = ProbeBuilder(
                scene, relation, text, entity.name, target, None if wrong else right, relation,
                frozenset(), part, pictured=False,
            )  # fmt: skip
            yield ask, "correction" if wrong else "counterfactual", k


_ASKS = {"vqa": _vqa_asks, "caption": _caption_asks, "text": _text_asks}


def _scope(ask: ProbeBuilder) -> tuple[tuple[str, str], ...]:
    """The attributes of the edited thing, its name, and the free attributes that the fact names."""
    named = (("name", ask.name),) if ask.name else ()
    return (*ask.scene.look.items(), *named, *((a, ask.scene.get(a)) for a in sorted(ask.fixed)))


def _case(ask: ProbeBuilder, task: str, origin: str, k: int, far: Slice, seed: int) -> Case:
    told = f"caption-{ask.changed}" if task == "caption" else ask.relation
    case_id = f"{task}-{ask.part.split}-{topics.look_key(ask.scene.look)}-{told}-{k}"
    rng = random.Random(f"{seed}/{case_id}/probes")
    build = all_probes if ask.pictured else text_probes
    probes = build(ask, probe_pool(ask.part), probe_pool(far), rng)
    stated = topics.stated(ask.scene, ask.relation, ask.changed)
    return Case(
        case_id, ask.edit(case_id), probes, task, origin, ask.relation, _scope(ask),
        states=() if ask.part.first_version else stated,
    )  # fmt: skip


@cache
def cases(task: str, split: str, variant: str, seed: int) -> tuple[Case, ...]:
    """All candidate cases of one task and split, shuffled, so that the first N are a fair sample.

    In the variant `published`, train takes its far-locality probes from the pool of eval, as in
    MMEdit; in nothing else it differs from `disjoint`. Only eval differs in `unseen` and `all`: an
    editor that is measured there is made from the same train split. `consequences` has the cases of
    dev or of `all` from which something follows. `v1`: see `slices`.
    """
    if variant == "consequences":
        whole = cases(task, split, "all", seed)
        follows = [c for c in whole if any(p.kind == "portability" for p in c.probes)]
        return whole if split == "train" else tuple(follows)
    same = ("published",) if split == "eval" else ("unseen", "all")
    if variant in (*same, *(("published",) if split == "dev" else ())):
        return cases(task, split, "disjoint", seed)
    far = Slice("eval") if variant == "published" else Slice(split, variant)
    part = Slice(split, "disjoint" if variant == "published" else variant)
    if part.first_version and task == "text":
        return ()
    out = []
    for look in filter(part.edits, world.looks()):
        entity = world.entity_of().get(look)
        rng = random.Random(f"{seed}/{task}/{topics.look_key(look)}")
        for ask, origin, k in _ASKS[task](part, look, entity, rng):
            out.append(_case(ask, task, origin, k, far, seed))
    random.Random(f"{seed}/{task}/{split}/order").shuffle(out)
    return tuple(out)


@cache
def panel() -> tuple[Probe, ...]:
    """Retention questions about looks and names that no case of any split edits."""
    rng = random.Random(f"{world.WORLD_SEED}/panel")
    home = probe_pool(Slice("panel", "v1"))
    out: list[Probe] = []
    for i in rng.sample(home.text_pool, PANEL_TEXTS):
        out.append(Probe(f"retention/text/{len(out)}", i.prompt, "retention", "text", i.reference))
    relations = [*VISIBLE, "name", *TEXT_ONLY, "caption"]
    n = 0
    while n < PANEL_IMAGES:
        relation = relations[n % len(relations)]
        visible = relation in (*VISIBLE, "caption")
        options = [k for k in home.looks if visible or k in world.entity_of()]
        scene = new_scene(rng.choice(options), rng)
        reference = truth(scene, relation)
        if reference is None:
            continue
        text = lang.ask(relation, rng.choice(lang.wordings(relation)), rng.choice(lang.POINTERS))
        prompt = Prompt.of(text, image_of(scene))
        out.append(Probe(f"retention/image/{n}", prompt, "retention", "image", reference))
        n += 1
    return tuple(out)
