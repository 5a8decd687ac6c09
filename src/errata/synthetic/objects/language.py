"""Texts of the objects world: questions, captions, and the in-context format.

A question is a template with a noun for the relation (three per relation) and a phrase for the
subject. A wording is a (template, noun) pair. Of the 36 wordings of a relation, three are reserved
for each of train, dev and eval and are never trained. Every template of a reserved wording is
trained with other relations, and every noun with other templates: only the combination is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from errata.synthetic.objects.world import Entity, ObjectScene

TEMPLATES = (
    "What is the {n} of {s}?",
    "Tell me the {n} of {s}.",
    "Which {n} does {s} have?",
    "Name the {n} of {s}.",
    "For {s}, what is the {n}?",
    "Give the {n} of {s}:",
    "What {n} has {s}?",
    "{s}: which {n}?",
    "The {n} of {s} is",
    "Can you say the {n} of {s}?",
    "I want to know the {n} of {s}.",
    "About {s}: the {n}?",
)
NOUNS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "colour": ("colour", "hue", "tint"),
        "shape": ("shape", "form", "outline"),
        "pattern": ("pattern", "texture", "decoration"),
        "accent": ("accent", "trim", "contrast"),
        "size": ("size", "scale", "bulk"),
        "position": ("position", "place", "spot"),
        "background": ("background", "backdrop", "ground"),
        "name": ("name", "title", "label"),
        "home": ("home", "city", "town"),
        "maker": ("maker", "builder", "creator"),
        "food": ("food", "meal", "dish"),
        "material": ("material", "stuff", "substance"),
        "country": ("country", "nation", "land"),
    }
)
RELATIONS = tuple(NOUNS)
#: Ways to point at the thing in the picture.
POINTERS = ("the object", "this thing", "the item", "this figure")

CAPTION = "a photo of"
_ARTICLES = ("a", "the", "this")
_VIEWS = ("photo", "picture", "image", "view", "snapshot")
_SHOWING = ("of", "showing", "with")

#: The two groups of wordings, and the splits that own reserved ones.
SEEN = "seen"
_RESERVED: Mapping[str, int] = MappingProxyType({"eval": 0, "dev": 1, "train": 2})


@dataclass(frozen=True, slots=True, order=True)
class ObjectWording:
    """One way to ask: a template and a noun (for captions: a frame and a word for the picture)."""

    template: int
    noun: int


@cache
def wordings(relation: str, group: str = SEEN) -> tuple[ObjectWording, ...]:
    """The trained wordings of a relation, or the ones reserved for the split `group`."""
    if relation == "caption":
        frames, nouns, shift = len(_ARTICLES) * len(_SHOWING), len(_VIEWS), 3
    else:
        frames, nouns = len(TEMPLATES), len(NOUNS[relation])
        shift = RELATIONS.index(relation)
    out = []
    for t in range(frames):
        for n in range(nouns):
            slot = (t + 4 * n + shift) % (12 if relation != "caption" else 9)
            owner = next((s for s, k in _RESERVED.items() if slot == k), SEEN)
            if owner == group:
                out.append(ObjectWording(t, n))
    return tuple(out)


def ask(relation: str, wording: ObjectWording, subject: str) -> str:
    """The question, or for captions the beginning to be continued (which names no subject)."""
    if relation == "caption":
        article = _ARTICLES[wording.template // len(_SHOWING)]
        view = _VIEWS[wording.noun]
        if article == "a" and view[0] in "aeiou":
            article = "an"
        return f"{article} {view} {_SHOWING[wording.template % len(_SHOWING)]}"
    return TEMPLATES[wording.template].format(n=NOUNS[relation][wording.noun], s=subject)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def place(position: str) -> str:
    return "in the centre" if position == "centre" else f"at the {position}"


def caption(
    scene: ObjectScene, name: str | None, changes: Mapping[str, str] = MappingProxyType({})
) -> str:
    """What is seen: colour, pattern, shape and position, after the name of a named thing.

    changes: other values for some attributes (false captions).
    """
    v = {a: changes.get(a, scene.get(a)) for a in ("colour", "pattern", "shape", "position")}
    name = changes.get("name", name) if name else None
    thing = f"{_article(v['colour'])} {v['colour']} {v['pattern']} {v['shape']}"
    text = f"{thing} {place(v['position'])}"
    return f"{name}, {text}" if name else text


#: The attributes that a caption mentions; a caption edit may vary only the others.
MENTIONED = ("colour", "pattern", "shape", "position")


def description(scene: ObjectScene) -> str:
    """Everything that is seen. Used in training only, to make every attribute readable."""
    look = scene.look
    trim = "" if look.pattern == "plain" else f" and {look.accent}"
    return (
        f"{_article(scene.size)} {scene.size} {look.pattern} {look.colour}{trim} {look.shape} "
        f"{place(scene.position)} on {scene.background}"
    )


def portrait(entity: Entity) -> str:
    """All taught facts of a known entity in one sentence. Used in training only."""
    look = entity.look
    trim = "" if look.pattern == "plain" else f" and {look.accent}"
    parts = [f"{_article(look.pattern)} {look.pattern} {look.colour}{trim} {look.shape}"]
    parts += [f"{NOUNS[r][0]} {v}" for r, v in entity.facts if entity.taught(r)]
    return ", ".join(parts)


def in_context(facts: Sequence[tuple[str, str]], demonstrations: str = "") -> str:
    """The text in front of a query (which follows after one space): new facts, then `Prompt:`."""
    lines = "".join(f"New Fact: {q} {a}\n" for q, a in facts)
    return f"{demonstrations}{lines}Prompt:"


def demonstration(fact: tuple[str, str], query: str, answer: str) -> str:
    """One worked example of the in-context format."""
    return f"{in_context([fact])} {query} {answer}\n\n"
