"""The cases of microworld: the edits of both tasks, counterfactual and correction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from errata.benchmarks.microworld.probes import (
    TEXT_ONLY,
    VISIBLE,
    ProbeBuilder,
    all_probes,
    image_of,
    new_scene,
    probe_pool,
    truth,
)
from errata.core.types import Case, Probe, Prompt
from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.world import Appearance, Entity

#: How many edits of each (look, asked) a split holds, with different pictures and targets.
_REPEATS = 2
PANEL_IMAGES, PANEL_TEXTS = 30, 20


def _vqa_asks(
    look: Appearance, entity: Entity | None, rng: random.Random
) -> Iterator[tuple[ProbeBuilder, str, int]]:
    """(edit, origin, repeat) of every question about one look."""
    if entity is None:
        relations = [r for r in VISIBLE if r != "accent" or look.pattern != "plain"]
    else:
        relations = ["name", *world.FACTS]
    for relation in relations:
        wrong = entity is not None and not entity.taught(relation)
        for k in range(_REPEATS if entity is None else 1):
            scene = new_scene(look, rng)
            right = truth(scene, relation)
            assert right is not None
            target = right if wrong else _false(relation, right, look, rng)
            pointer = rng.choice(lang.POINTERS)
            text = lang.ask(relation, rng.choice(lang.wordings(relation)), pointer)
            fixed = frozenset({relation} & set(world.FREE))
            old = None if wrong else right
            ask = ProbeBuilder(scene, relation, text, pointer, target, old, relation, fixed)
            yield ask, "correction" if wrong else "counterfactual", k


def _false(relation: str, right: str, look: Appearance, rng: random.Random) -> str:
    """A wrong value; for a name, the name of another known thing of the split."""
    options = world.values(relation)
    if relation == "name":
        options = tuple(e.name for e in probe_pool(world.triple_split()[look.triple]).known)
    return rng.choice([v for v in options if v != right])


def _caption_asks(
    look: Appearance, entity: Entity | None, rng: random.Random
) -> Iterator[tuple[ProbeBuilder, str, int]]:
    """(edit, origin, repeat) of every caption edit of one look."""
    name = entity.name if entity else None
    changed = lang.MENTIONED if entity is None else ("name", *lang.MENTIONED)
    wrong = entity is not None and not entity.known
    for attribute in ("name",) if wrong else changed:
        for k in range(1 if wrong else _REPEATS):
            scene = new_scene(look, rng)
            right = lang.caption(scene, name)
            old = None if wrong else right
            target = right
            if not wrong:
                current = name if attribute == "name" else scene.get(attribute)
                assert current is not None
                value = _false(attribute, current, look, rng)
                target = lang.caption(scene, name, {attribute: value})
            fixed = frozenset({"position"})
            ask = ProbeBuilder(
                scene, "caption", lang.CAPTION, lang.POINTERS[0], target, old, attribute, fixed
            )
            yield ask, "correction" if wrong else "counterfactual", k


def _scope(ask: ProbeBuilder) -> tuple[tuple[str, str], ...]:
    """The attributes of the edited thing, its name, and the free attributes that the fact names."""
    named = (("name", ask.name),) if ask.name else ()
    return (*ask.scene.look.items(), *named, *((a, ask.scene.get(a)) for a in sorted(ask.fixed)))


def _case(
    ask: ProbeBuilder, task: str, origin: str, k: int, split: str, pool: str, seed: int
) -> Case:
    look = "-".join(v for _, v in ask.scene.look.items())
    what = ask.relation if task == "vqa" else f"caption-{ask.changed}"
    case_id = f"{task}-{split}-{look}-{what}-{k}"
    rng = random.Random(f"{seed}/{case_id}/probes")
    probes = all_probes(ask, probe_pool(split), probe_pool(pool), rng)
    return Case(case_id, ask.edit(case_id), probes, task, origin, ask.relation, _scope(ask))


@cache
def cases(task: str, split: str, variant: str, seed: int) -> tuple[Case, ...]:
    """All candidate cases of one task and split, shuffled, so that the first N are a fair sample.

    In the variant `published`, train takes its far-locality probes from the pool of eval, as in
    MMEdit; nothing else differs between the variants.
    """
    if split != "train" and variant != "disjoint":
        return cases(task, split, "disjoint", seed)
    pool = "eval" if variant == "published" else split
    out = []
    for look in world.looks():
        if world.triple_split()[look.triple] != split:
            continue
        entity = world.entity_of().get(look)
        rng = random.Random(f"{seed}/{task}/{'-'.join(v for _, v in look.items())}")
        asks = _vqa_asks if task == "vqa" else _caption_asks
        for ask, origin, k in asks(look, entity, rng):
            out.append(_case(ask, task, origin, k, split, pool, seed))
    random.Random(f"{seed}/{task}/{split}/order").shuffle(out)
    return tuple(out)


@cache
def panel() -> tuple[Probe, ...]:
    """Retention questions about looks and names that no case of any split edits."""
    rng = random.Random(f"{world.WORLD_SEED}/panel")
    home = probe_pool("panel")
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
