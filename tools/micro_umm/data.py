"""Training data of micro-umm: texts with a loss weight per token, and pictures with their prompts.

All random choices come from a passed `random.Random`. Names whose pictures are withheld (`drawn`
is False) appear in texts as often as others, and in no picture.

Shapes: B rows, T tokens, S side of a picture.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import (
    ATTRIBUTES,
    OBJECTS,
    SETTINGS,
    ShapeObject,
    ShapeScene,
    fact,
    scene_of,
)
from errata.synthetic.shapes.render import render
from tools.micro_umm.tokenizer import build_tokenizer

#: loss weights: of a token that repeats what the prompt gave, and of other words of a rationale;
#: values, copied names and the end of a text have weight 1
FAINT, PLAIN = 0.05, 0.3
DRAWN = tuple(o for o in OBJECTS if o.drawn)
NAMES = frozenset(o.name for o in OBJECTS)
VALUES = frozenset(v for vs in ATTRIBUTES.values() for v in vs)
#: shares of the settings of the four stages
STAGES = (1, 1, 1, 2, 2, 3, 3, 4, 4)
Piece = tuple[str, float]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer()(text, add_special_tokens=False)["input_ids"])


def setting(rng: random.Random) -> str:
    return rng.choice(SETTINGS[rng.choice(STAGES)])


def some(rng: random.Random, most: int = 3) -> list[str]:
    """1 to `most` attributes."""
    return rng.sample(tuple(ATTRIBUTES), rng.randint(1, most))


def _keyed(text: str, other: float) -> list[Piece]:
    """Words of a text: names and values count fully, the rest `other`."""
    pieces = []
    for word in text.replace(".", " .").split():
        bare = word.strip(",")
        weight = 1.0 if bare in NAMES or bare in VALUES else other
        pieces.append(("." if word == "." else f" {word}", weight))
    return pieces


def fact_text(rng: random.Random) -> list[Piece]:
    thing, attribute = rng.choice(OBJECTS), rng.choice(tuple(ATTRIBUTES))
    prompt = lang.question(attribute, thing.name, rng.choice(lang.wordings(attribute)))
    return [(prompt, 0.0), (f" {fact(thing, attribute)}", 1.0), ("</s>", 1.0)]


def seen_values(thing: ShapeObject, stated: Mapping[str, str]) -> dict[str, str]:
    return {a: stated.get(a, fact(thing, a)) for a in ATTRIBUTES}


def random_values(rng: random.Random, attributes: Sequence[str]) -> dict[str, str]:
    return {a: rng.choice(ATTRIBUTES[a]) for a in attributes}


def any_caption(
    rng: random.Random, thing: ShapeObject, stated: Mapping[str, str], where: str | None = None
) -> str:
    style = rng.choice((lang.caption, lang.oracle))
    wording = rng.choice(lang.wordings("caption"))
    return style(thing.name, wording, setting(rng) if where is None else where, **stated)


def dense_text(rng: random.Random) -> list[Piece]:
    """A caption, half the time with stated values, and everything that then shows."""
    thing = rng.choice(OBJECTS)
    stated = random_values(rng, some(rng)) if rng.random() < 0.5 else {}
    caption = any_caption(rng, thing, stated)
    shown = lang.description(seen_values(thing, stated))
    return [(caption, FAINT), *_keyed(shown, FAINT), ("</s>", 1.0)]


def generic_text(rng: random.Random) -> list[Piece]:
    scene = random_scene(rng)
    caption = lang.generic(scene, rng.choice(lang.wordings("caption")))
    values = {a: v for a in ATTRIBUTES if (v := getattr(scene, a))}
    return [(caption, FAINT), *_keyed(lang.description(values), FAINT), ("</s>", 1.0)]


def reasoned(rng: random.Random, thing: ShapeObject) -> tuple[str, str, str, str, str, str]:
    """(attribute, value, setting, image prompt, reasoning prompt, rationale)

    Half of the values are counterfactual.
    """
    attribute = rng.choice(tuple(ATTRIBUTES))
    value = fact(thing, attribute)
    if rng.random() < 0.5:
        value = rng.choice(ATTRIBUTES[attribute])
    wording, where = rng.choice(lang.wordings("caption")), setting(rng)
    prompt = lang.caption(thing.name, wording, where)
    question = lang.reasoning(attribute, thing.name, prompt)
    why = lang.rationale(attribute, thing.name, value, wording, where)
    return attribute, value, where, prompt, question, why


def rationale_text(rng: random.Random) -> list[Piece]:
    """A rationale behind its prompt; no loss on a counterfactual value before it is stated."""
    thing = rng.choice(OBJECTS)
    attribute, value, _, _, prompt, why = reasoned(rng, thing)
    rationale = _keyed(why, PLAIN)
    if value != fact(thing, attribute):
        first = next(k for k, (word, _) in enumerate(rationale) if word.strip(" ,.") == value)
        rationale = [(w, 0.0 if k <= first else weight) for k, (w, weight) in enumerate(rationale)]
    return [(prompt, 0.0), *rationale, ("</s>", 1.0)]


def informed(rng: random.Random, thing: ShapeObject) -> tuple[str, dict[str, str], str]:
    """(text that a picture is drawn from after a rationale, stated values, setting)."""
    attribute, value, where, prompt, _, why = reasoned(rng, thing)
    text = rng.choice((why, why + lang.GLUE + prompt, why + lang.GLUE + lang.INSTRUCT + prompt))
    return text, {attribute: value}, where


def informed_text(rng: random.Random) -> list[Piece]:
    thing = rng.choice(OBJECTS)
    text, stated, _ = informed(rng, thing)
    shown = lang.description(seen_values(thing, stated))
    return [(text, 0.0), *_keyed(shown, FAINT), ("</s>", 1.0)]


def text_batch(rows: Sequence[list[Piece]]) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, T], mask [B, T], and the weight [B, T] with which each token is to be predicted."""
    bos = tokenizer().bos_token_id
    encoded = []
    for row in rows:
        ids, weights = [bos], [0.0]
        for text, weight in row:
            part = (tokenizer().eos_token_id,) if text == "</s>" else _ids(text)
            ids += part
            weights += [weight] * len(part)
        encoded.append((ids, weights))
    longest = max(len(i) for i, _ in encoded)
    ids_BT = torch.zeros(len(encoded), longest, dtype=torch.long)
    weight_BT = torch.zeros(len(encoded), longest)
    mask_BT = torch.zeros(len(encoded), longest, dtype=torch.long)
    for b, (ids, weights) in enumerate(encoded):
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        weight_BT[b, : len(ids)] = torch.tensor(weights)
        mask_BT[b, : len(ids)] = 1
    return ids_BT, mask_BT, weight_BT


# -- pictures -----------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> ShapeScene:
    """A nameless thing; home and maker half of the time."""
    values = random_values(rng, tuple(ATTRIBUTES))
    for mark in ("home", "maker"):
        if rng.random() < 0.5:
            values[mark] = ""
    return ShapeScene(**values, setting=setting(rng), seed=rng.randrange(1 << 30))


def picture_row(rng: random.Random) -> tuple[str, ShapeScene]:
    """A prompt, and what is to be drawn for it."""
    kind, thing = rng.random(), rng.choice(DRAWN)
    if kind < 0.15:
        scene = random_scene(rng)
        return lang.generic(scene, rng.choice(lang.wordings("caption"))), scene
    where = setting(rng)
    if kind < 0.40:
        stated: dict[str, str] = {}
        text = any_caption(rng, thing, stated, where)
    elif kind < 0.75:
        stated = random_values(rng, some(rng))
        text = any_caption(rng, thing, stated, where)
    else:
        text, stated, where = informed(rng, thing)
    return text, scene_of(thing, where, rng.randrange(1 << 30), **stated)


def pictures(scenes: Sequence[ShapeScene]) -> Tensor:
    """[B, S, S, 3] floats from -1 to 1."""
    return torch.from_numpy(np.stack([render(s) for s in scenes])).float() / 127.5 - 1
