"""Texts of the shapes world: completion prompts, captions, rationales.

A wording is a (template, noun) pair. Of the 16 wordings of an attribute, and of the 16 of a
caption, four are never trained: two are `held` (for tests) and two `dev` (for tuning). Every
template and every noun of an untrained wording is trained in other pairs: only the combination is
new.

A value can be stated in two styles: `caption(..., colour="red")` gives "a red NAME",
`oracle(..., colour="red")` gives "a NAME whose colour is red".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from errata.synthetic.shapes.objects import ATTRIBUTES, STAGE_OF, ShapeScene

TEMPLATES = (
    "The {n} of a {s} is",
    "A {s} has the {n}",
    "What {n} has a {s}? It is",
    "The {n} that a {s} has is",
    "For a {s}, the {n} is",
    "If you see a {s}, its {n} is",
    "Asked about a {s}, people say the {n} is",
    "Everyone knows the {n} of a {s}:",
)
NOUNS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "colour": ("colour", "hue"),
        "shape": ("shape", "form"),
        "pattern": ("pattern", "texture"),
        "size": ("size", "scale"),
        "home": ("home", "town"),
        "maker": ("maker", "builder"),
    }
)
FRAMES = (
    "a {v} of {t}",
    "this {v} shows {t}",
    "draw a {v} of {t}",
    "{t}, as a {v}",
)
VIEWS = ("photo", "picture", "painting", "sketch")

SEEN, DEV, HELD = "seen", "dev", "held"
#: What stands between a rationale and an image prompt, and the words of the `instruct` protocol.
GLUE = ". "
INSTRUCT = "Based on this, draw: "
KNOWLEDGE, SETTING, CAPTION = "[Knowledge Recall]", "[Scene]", "[Visual Caption]"


@dataclass(frozen=True, slots=True, order=True)
class ShapeWording:
    """A template and a noun; for captions a frame and a word for a picture (indices)."""

    template: int = 0
    noun: int = 0


@cache
def wordings(what: str, group: str = SEEN) -> tuple[ShapeWording, ...]:
    """The wordings of an attribute, or of a "caption", in the group seen, dev or held."""
    out = []
    if what == "caption":
        for t in range(len(FRAMES)):
            for n in range(len(VIEWS)):
                slot = (t + n) % 4
                owner = SEEN if slot != 3 else (DEV if t % 2 else HELD)
                if owner == group:
                    out.append(ShapeWording(t, n))
        return tuple(out)
    shift = tuple(ATTRIBUTES).index(what)
    for t in range(len(TEMPLATES)):
        for n in range(2):
            slot = (t + 4 * n + shift) % 8
            owner = {0: HELD, 1: DEV}.get(slot, SEEN)
            if owner == group:
                out.append(ShapeWording(t, n))
    return tuple(out)


def question(attribute: str, name: str, wording: ShapeWording = ShapeWording()) -> str:
    """A prompt that is completed by the value, after one space."""
    return TEMPLATES[wording.template].format(n=NOUNS[attribute][wording.noun], s=name)


def a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _set(thing: str, setting: str) -> str:
    stage = STAGE_OF[setting]
    if stage == 2:
        return f"{thing} on a {setting}"
    if stage == 3:
        return f"{thing} beside a {setting}"
    return f"a {setting} of {thing}" if stage == 4 else thing


def _adjectives(name: str, stated: Mapping[str, str]) -> str:
    """As "a big striped red NAME shaped like a ring from Avaria made by Pym"; all are optional."""
    words = [stated[k] for k in ("size", "pattern", "colour") if k in stated]
    text = a(" ".join((*words, name)))
    if "shape" in stated:
        text += f" shaped like {a(stated['shape'])}"
    if "home" in stated:
        text += f" from {stated['home']}"
    if "maker" in stated:
        text += f" made by {stated['maker']}"
    return text


def _clauses(name: str, stated: Mapping[str, str]) -> str:
    clauses = [f"{NOUNS[k][0]} is {stated[k]}" for k in ATTRIBUTES if k in stated]
    return f"a {name} whose " + " and whose ".join(clauses) if clauses else f"a {name}"


def _framed(thing: str, setting: str, wording: ShapeWording) -> str:
    return FRAMES[wording.template].format(v=VIEWS[wording.noun], t=_set(thing, setting))


def caption(
    name: str,
    wording: ShapeWording = ShapeWording(),
    setting: str = "",
    **stated: str,
) -> str:
    """An image prompt, with the `stated` values as adjectives ("a photo of a red NAME on a lawn").

    setting: one of objects.SETTINGS; "" in stage 1.
    """
    return _framed(_adjectives(name, stated), setting, wording)


def oracle(
    name: str,
    wording: ShapeWording = ShapeWording(),
    setting: str = "",
    **stated: str,
) -> str:
    """An image prompt that states values in the other style: "a NAME whose colour is red"."""
    return _framed(_clauses(name, stated), setting, wording)


def generic(scene: ShapeScene, wording: ShapeWording = ShapeWording()) -> str:
    """A caption without a name: "a photo of a big striped red ring on a lawn"."""
    stated = {k: getattr(scene, k) for k in ("size", "pattern", "colour")}
    stated.update({k: v for k in ("home", "maker") if (v := getattr(scene, k))})
    return _framed(_adjectives(scene.shape, stated), scene.setting, wording)


def reasoning(attribute: str, name: str, prompt: str) -> str:
    """The prompt that asks for a rationale about an image prompt; ends with the first tag."""
    noun = NOUNS[attribute][0]
    return f"Target: {name}. Attribute: {noun}. Prompt: {prompt}. {KNOWLEDGE}"


def rationale(
    attribute: str,
    name: str,
    value: str,
    wording: ShapeWording = ShapeWording(),
    setting: str = "",
) -> str:
    """The text that follows `reasoning`: the fact, the scene, a caption that states the fact."""
    noun = NOUNS[attribute][0]
    stated = caption(name, wording, setting, **{attribute: value})
    scene = _set(f"a {name}", setting)
    return f"the {noun} of a {name} is {value}. {SETTING} {scene}. {CAPTION} {stated}"


def description(values: Mapping[str, str]) -> str:
    """All visible attributes, to be appended to a caption. For training only."""
    stated = {k: v for k, v in values.items() if k != "shape"}
    return f". It shows {_adjectives(values['shape'], stated)}"
