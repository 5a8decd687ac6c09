"""Cases of the generated world (task `microworld`): one fact of one object, with all its probes.

Nothing is read from disk. Objects are divided among the splits, drawn and never-drawn ones
separately: no object is edited in two splits. Locality probes ask about objects of the train split
(for train itself, of dev). A sequence edits an object once, so questions about its other facts stay
true.

Tests use other wordings than training and search: image prompts, and the prompts that state the
fact, use caption wordings that no training and no search uses (`held`); the latter state the fact
in the other style ("a NAME whose colour is red").
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from errata.core.types import Case, Edit, JudgeQuestion, Probe, Prompt, StatedFact
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, LOOKS, OBJECTS, SETTINGS, ShapeObject, fact

TASK = "microworld"
#: Tenths of the objects per split; the last split takes the rest.
SHARES = (("train", 2), ("dev", 1), ("eval", 10))
#: Maximum tokens of a rationale; the longest correct one has about half as many.
RATIONALE = 64
SEED = "errata/unike_umm/microworld"


@cache
def objects(split: str) -> tuple[ShapeObject, ...]:
    """The objects that a split edits: the same share of drawn and of never-drawn ones."""
    rng = random.Random(f"{SEED}/splits")
    of_split: list[ShapeObject] = []
    for drawn in (True, False):
        group = [o for o in OBJECTS if o.drawn == drawn]
        rng.shuffle(group)
        at = 0
        for name, tenths in SHARES:
            size = len(group) * tenths // 10
            if name == split:
                of_split += group[at : at + size]
            at += size
    return tuple(sorted(of_split, key=OBJECTS.index))


def cases(split: str, seed: int) -> list[Case]:
    """One case per fact of every object of a split; its target is another value."""
    away = objects("dev" if split == "train" else "train")
    return [_case(o, a, away, seed) for o in objects(split) for a in ATTRIBUTES]


def _case(thing: ShapeObject, attribute: str, away: Sequence[ShapeObject], seed: int) -> Case:
    rng = random.Random(f"{SEED}/{thing.name}/{attribute}/{seed}")
    old = fact(thing, attribute)
    target = rng.choice([v for v in ATTRIBUTES[attribute] if v != old])
    name = f"{thing.name}-{attribute}"
    wording = rng.choice(lang.wordings(attribute))
    prompt = Prompt.of(lang.question(attribute, thing.name, wording))
    probes = [
        *_questions(thing, attribute, target, wording, rng),
        *_drawn(thing, attribute, target, rng),
        *_kept_texts(thing, attribute, target, away, rng),
        *_kept_pictures(thing, attribute, away, rng),
    ]
    return Case(
        name,
        Edit(prompt, target, thing.name, old, name),
        tuple(probes),
        task=TASK,
        asked=attribute,
        scope=(("name", thing.name), (attribute, old)),
        parts=(
            ("category", attribute),
            ("object", "drawn in training" if thing.drawn else "never drawn"),
            ("source", "attribute" if attribute in LOOKS else "relation"),
        ),
    )


def _phrase(name: str, setting: str) -> str:
    """The thing in its setting, without an article: "NAME on a lawn", "flag of a NAME"."""
    return lang.caption(name, setting=setting).split(" of a ", 1)[1]


def _questions(
    thing: ShapeObject, attribute: str, target: str, wording: lang.ShapeWording, rng: random.Random
) -> Iterator[Probe]:
    """Efficacy probes: the edited prompt in the setting of each stage, and other wordings."""
    for stage, settings in SETTINGS.items():
        text = lang.question(attribute, _phrase(thing.name, rng.choice(settings)), wording)
        yield _efficacy(f"stage{stage}", 0, text, target)
    others = [w for w in lang.wordings(attribute) if w != wording]
    for group, wordings in (
        ("seen", rng.sample(others, 2)),
        ("unseen", lang.wordings(attribute, lang.HELD)),
    ):
        for i, other in enumerate(wordings):
            yield _efficacy(group, i, lang.question(attribute, thing.name, other), target)


def _efficacy(group: str, i: int, text: str, target: str) -> Probe:
    return Probe(f"efficacy/{group}/{i}", Prompt.of(text), "efficacy", group, target)


def _drawn(thing: ShapeObject, attribute: str, target: str, rng: random.Random) -> Iterator[Probe]:
    """The rationale probe and the picture probe of each stage."""
    old = fact(thing, attribute)
    view = _view(thing, attribute, target, old)
    for stage, settings in SETTINGS.items():
        setting, wording = rng.choice(settings), rng.choice(lang.wordings("caption", lang.HELD))
        text = lang.caption(thing.name, wording, setting)
        aids = StatedFact(
            oracle=Prompt.of(lang.oracle(thing.name, wording, setting, **{attribute: target})),
            rationale=lang.rationale(attribute, thing.name, target, wording, setting),
            glue=lang.GLUE,
            instruct=lang.INSTRUCT,
        )
        group = f"stage{stage}"
        reasoning = Prompt.of(lang.reasoning(attribute, thing.name, text))
        yield Probe(
            f"reasoning/{group}", reasoning, "reasoning", group, target, cap=RATIONALE, view=view
        )
        yield Probe(f"vqa/{group}", Prompt.of(text), "vqa", group, view=view, aids=aids)


def _view(thing: ShapeObject, attribute: str, target: str, old: str = "") -> JudgeQuestion:
    noun = lang.NOUNS[attribute][0]
    return JudgeQuestion(
        f"What is the {noun} of the {thing.name}?",
        f"The {noun} of the {thing.name} is {target}.",
        target,
        old,
        attribute,
    )


def _kept_texts(
    thing: ShapeObject, attribute: str, target: str, away: Sequence[ShapeObject], rng: random.Random
) -> Iterator[Probe]:
    """Locality questions: about other things, the same thing, and the same attribute."""
    rest = [a for a in ATTRIBUTES if a != attribute]
    far = [(o, rng.choice(rest)) for o in rng.sample(away, 2)]
    same = [(thing, a) for a in rng.sample(rest, 3)]
    like = [o for o in rng.sample(away, len(away)) if fact(o, attribute) != target][:3]
    groups: tuple[tuple[str, str, list[tuple[ShapeObject, str]]], ...] = (
        ("t_locality", "", far),
        ("near_locality", "same_subject", same),
        ("near_locality", "same_attribute", [(o, attribute) for o in like]),
    )
    for kind, group, pairs in groups:
        head = f"{kind}/{group}" if group else kind
        for i, (other, about) in enumerate(pairs):
            text = lang.question(about, other.name, rng.choice(lang.wordings(about)))
            yield Probe(f"{head}/{i}", Prompt.of(text), kind, group, fact(other, about))


def _kept_pictures(
    thing: ShapeObject, attribute: str, away: Sequence[ShapeObject], rng: random.Random
) -> Iterator[Probe]:
    """Locality pictures, each judged by one attribute.

    Of other things: by the edited attribute, and by another. Of the same thing: by another.
    """
    rest = [a for a in ATTRIBUTES if a != attribute]
    first, second = rng.sample([o for o in away if o.drawn], 2)
    for group, other, about in (
        ("same_attribute", first, attribute),
        ("unrelated", second, rng.choice(rest)),
        ("same_subject", thing, rng.choice(rest)),
    ):
        wording = rng.choice(lang.wordings("caption", lang.HELD))
        text = lang.caption(other.name, wording)
        view = _view(other, about, fact(other, about))
        yield Probe(f"i_locality/{group}", Prompt.of(text), "i_locality", group, view=view)


def audit() -> Mapping[str, Any]:
    """Counts of each split, and what two splits share."""
    out: dict[str, Any] = {}
    for split, _ in SHARES:
        of_split = cases(split, 0)
        groups = Counter(f"{p.kind}/{p.group}".rstrip("/") for c in of_split for p in c.probes)
        out[split] = {
            "objects": len(objects(split)),
            "never drawn": sum(not o.drawn for o in objects(split)),
            "cases": len(of_split),
            "probes": dict(sorted(groups.items())),
        }
    edited = {s: {o.name for o in objects(s)} for s, _ in SHARES}
    out["edited objects shared by splits"] = {
        f"{a}/{b}": len(edited[a] & edited[b])
        for a, b in (("train", "eval"), ("train", "dev"), ("dev", "eval"))
    }
    return out
