"""Training rows of micro-vlm, and how they become batches.

A row is a prefix (optionally beginning with an image) followed by segments. All segments of a row
see the prefix and themselves, not each other (a block-diagonal mask), so that many questions share
one image and one context. The loss is on answers only, each with its end-of-sequence token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from errata.synthetic.objects import language as lang
from errata.synthetic.objects import render, world
from tools.micro_vlm.model import IMAGE_TOKENS, pixels
from tools.micro_vlm.tokenizer import build_tokenizer
from tools.micro_vlm.tower import draw_scene

VISIBLE = (*world.IDENTITY, *world.FREE)
TAUGHT = (*world.FACTS, "country")


@dataclass(slots=True)
class Segment:
    """A prompt and its answer; `family` names the question family it is counted under."""

    prompt: str
    answer: str
    family: str = ""


@dataclass(slots=True)
class Row:
    """A prefix (image, then text of which some answers are trained) and the segments after it."""

    scene: world.ObjectScene | None = None
    prefix: list[tuple[str, bool]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


@cache
def tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=400_000)
def ids_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer()(text, add_special_tokens=False).input_ids)


def question(
    relation: str, rng: random.Random, subject: str | None = None, group: str = lang.SEEN
) -> str:
    subject = subject or rng.choice(lang.POINTERS)
    return lang.ask(relation, rng.choice(lang.wordings(relation, group)), subject)


# ------------------------------------------------------------------------------------------ truths


def scene_truths(scene: world.ObjectScene) -> dict[str, str]:
    """Every relation the model should answer about a picture, with the answer."""
    out = {a: scene.get(a) for a in VISIBLE if scene.get(a) != world.NO_ACCENT}
    entity = world.entity_of().get(scene.look)
    known = entity if entity and entity.known else None
    if known:
        out |= {r: known.fact(r) for r in ("name", *TAUGHT) if known.taught(r)}
    out["caption"] = lang.caption(scene, known.name if known else None)
    return out


@cache
def text_truths() -> tuple[tuple[str, str, str], ...]:
    """(subject, relation, answer) of everything told in text: facts, looks and cities."""
    out = []
    for e in world.known_entities():
        for r in (*world.IDENTITY, *TAUGHT):
            if e.taught(r) and e.fact(r) != world.NO_ACCENT:
                out.append((e.name, r, e.fact(r)))
    cities = [(c, "country", k) for c, k in world.country_of().items()]
    return (*out, *cities * 4)


@cache
def _by_relation() -> dict[str, list[tuple[str, str, str]]]:
    out: dict[str, list[tuple[str, str, str]]] = {}
    for item in text_truths():
        out.setdefault(item[1], []).append(item)
    return out


@cache
def _known_names() -> frozenset[str]:
    return frozenset(e.name for e in world.entities())


def invented(rng: random.Random) -> str:
    """A name that nobody in the world has."""
    while True:
        ends = [rng.choice(world._LAST) for _ in range(rng.choice((1, 1, 2)))]
        name = rng.choice(world._FIRST) + "".join(ends)
        if name not in _known_names():
            return name


def false_value(relation: str, rng: random.Random, scene: world.ObjectScene | None) -> str:
    """A value for a new fact: mostly another one of the relation, sometimes an unheard one."""
    if relation == "caption":
        other = draw_scene(rng)
        e = world.entity_of().get(other.look)
        named = scene is not None and scene.look in world.entity_of()
        name = (invented(rng) if rng.random() < 0.7 or not e else e.name) if named else None
        return lang.caption(other, name)
    if relation == "name":
        return invented(rng)
    if relation in TAUGHT and rng.random() < 0.25:
        return invented(rng)
    return rng.choice(world.values(relation))


# -------------------------------------------------------------------------------------------- rows


def image_row(rng: random.Random, first_seed: int, group: str = lang.SEEN) -> Row:
    scene = draw_scene(rng, first_seed)
    truths = scene_truths(scene)
    row = Row(scene, [("\n", False)])
    visible = [r for r in VISIBLE if r in truths]
    taught = [r for r in TAUGHT if r in truths]
    relations = ["caption"]
    if "name" in truths:
        relations += ["name", *rng.sample(taught, min(3, len(taught))), *rng.sample(visible, 2)]
    else:
        relations += rng.sample(visible, 5)
    for r in relations:
        row.segments.append(Segment(question(r, rng, group=group), truths[r], f"image/{r}"))
    if group == lang.SEEN:
        ask = f"Describe {rng.choice(lang.POINTERS)}."
        row.segments.append(Segment(ask, lang.description(scene), "describe"))
    return row


def _told(rng: random.Random, relation: str | None = None) -> tuple[str, str, str]:
    return rng.choice(_by_relation()[relation] if relation else text_truths())


def text_row(rng: random.Random, n: int = 9, group: str = lang.SEEN) -> Row:
    row = Row()
    for _ in range(n):
        s, r, a = _told(rng)
        row.segments.append(Segment(question(r, rng, s, group), a, f"text/{r}"))
    if group == lang.SEEN:
        e = rng.choice(world.known_entities())
        row.segments.append(Segment(f"Describe {e.name}.", lang.portrait(e), "portrait"))
    return row


@dataclass(slots=True)
class Fact:
    """A new fact in a context: about the pointed-at thing (subject None) or about a name."""

    relation: str
    subject: str | None
    value: str

    def line(self, rng: random.Random) -> tuple[str, str]:
        return question(self.relation, rng, self.subject), self.value


def new_fact(rng: random.Random, scene: world.ObjectScene | None) -> Fact:
    if rng.random() < 0.65:
        options = [*VISIBLE, "name", *TAUGHT, "caption"]
        relation = rng.choice(options)
        return Fact(relation, None, false_value(relation, rng, scene))
    relation = rng.choice([*world.IDENTITY, *TAUGHT])
    subject = invented(rng) if rng.random() < 0.4 else _told(rng, relation)[0]
    return Fact(relation, subject, false_value(relation, rng, None))


def _independent(fact: Fact, relation: str, subject: str | None) -> bool:
    """Whether a question keeps its old answer when the fact is new."""
    if fact.subject != subject:
        return True
    if fact.relation == "caption":
        return relation not in (*lang.MENTIONED, "caption", "name")
    tied = {"home": {"country"}, "country": {"home"}, "name": {"caption"}}
    tied |= {a: {"caption"} for a in lang.MENTIONED}
    return relation != fact.relation and relation not in tied.get(fact.relation, ())


def _unrelated(
    rng: random.Random, facts: list[Fact], truths: dict[str, str], group: str
) -> Segment:
    """A question that none of the facts answers: about the picture, or a told fact."""
    for _ in range(20):
        if truths and rng.random() < 0.6:
            r = rng.choice(list(truths))
            if all(_independent(f, r, None) for f in facts):
                return Segment(question(r, rng, group=group), truths[r], "icl/image-unrelated")
        near = rng.random() < 0.4 and facts[-1].relation in _by_relation()
        s, r, a = _told(rng, facts[-1].relation if near else None)
        if all(_independent(f, r, s) for f in facts):
            return Segment(question(r, rng, s, group), a, "icl/text-unrelated")
    s, r, a = _told(rng, "country")
    return Segment(question(r, rng, s, group), a, "icl/text-unrelated")


def _demonstrations(rng: random.Random, n: int) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    for _ in range(n):
        fact = new_fact(rng, None)
        q, a = fact.line(rng)
        kind = rng.randrange(3)
        if kind == 2:
            kept = _unrelated(rng, [fact], {}, lang.SEEN)
            query, answer = kept.prompt, kept.answer
        else:
            query, answer = (q if kind == 0 else fact.line(rng)[0]), a
        out += [(f"{lang.in_context([(q, a)])} {query}", False), (f" {answer}", True)]
        out.append(("\n\n", False))
    return out


def context_row(rng: random.Random, first_seed: int, group: str = lang.SEEN) -> Row:
    """`New Fact: ... Prompt: ...` with demonstrations; a fact answers half of the queries."""
    scene = draw_scene(rng, first_seed) if rng.random() < 0.65 else None
    truths = scene_truths(scene) if scene else {}
    row = Row(scene, [("\n", False)] if scene else [])
    row.prefix += _demonstrations(rng, rng.choice((0, 0, 0, 1, 1, 2, 3, 5, 7)))
    facts = [new_fact(rng, scene) for _ in range(rng.choice((1, 1, 1, 1, 2, 3)))]
    facts = [f for i, f in enumerate(facts)
             if all(_independent(g, f.relation, f.subject) for g in facts[:i])]  # fmt: skip
    lines = [f.line(rng) for f in facts]
    row.prefix.append((lang.in_context(lines), False))
    for _ in range(3):
        i = rng.randrange(len(facts))
        f = facts[i]
        same = rng.random() < 0.25 and group == lang.SEEN
        q = lines[i][0] if same else question(f.relation, rng, f.subject, group)
        where = "image" if scene else "text"
        row.segments.append(Segment(" " + q, f.value, f"icl/{where}-related"))
    for _ in range(3):
        seg = _unrelated(rng, facts, truths, group)
        row.segments.append(Segment(" " + seg.prompt, seg.answer, seg.family))
    return row


# ----------------------------------------------------------------------------------------- batches


@dataclass(slots=True)
class Batch:
    """Rows side by side.

    ids [B, T] (image places hold the pad id), allow [B, 1, T, T], pos [B, T], labels [B, T] (the
    next token where it is trained, else -100), segment [B, T], pixels [B, 3, 40, 40] or None.
    """

    ids: Tensor
    allow: Tensor
    pos: Tensor
    labels: Tensor
    segment: Tensor
    pixels: Tensor | None
    families: list[list[str]]


def _flatten(row: Row) -> tuple[list[int], list[int], list[int], list[int]]:
    """ids, positions, labels and segment numbers of one row."""
    tok = tokenizer()
    ids, labels = [tok.bos_token_id], [-100]
    if row.scene:
        ids += [tok.pad_token_id] * IMAGE_TOKENS
        labels += [-100] * IMAGE_TOKENS
    for text, trained in row.prefix:
        new = ids_of(text)
        for t in new:
            if trained:
                labels[-1] = t
            ids.append(t)
            labels.append(-100)
    n = len(ids)
    pos, seg = list(range(n)), [0] * n
    for k, s in enumerate(row.segments, 1):
        q, a = ids_of(s.prompt), (*ids_of(" " + s.answer), tok.eos_token_id)
        ids += [*q, *a[:-1]]
        labels += [-100] * (len(q) - 1) + list(a)
        m = len(q) + len(a) - 1
        pos += range(n, n + m)
        seg += [k] * m
    return ids, pos, labels, seg


def collate(rows: list[Row]) -> Batch:
    flat = [_flatten(r) for r in rows]
    b, t = len(rows), max(len(f[0]) for f in flat)
    ids = torch.zeros(b, t, dtype=torch.long)
    pos = torch.zeros(b, t, dtype=torch.long)
    labels = torch.full((b, t), -100)
    seg = torch.full((b, t), -1)
    for i, (x, p, y, s) in enumerate(flat):
        n = len(x)
        ids[i, :n], pos[i, :n] = torch.tensor(x), torch.tensor(p)
        labels[i, :n], seg[i, :n] = torch.tensor(y), torch.tensor(s)
    same = seg[:, :, None] == seg[:, None, :]
    allow = (same | (seg[:, None, :] == 0)) & torch.ones(t, t, dtype=torch.bool).tril()
    images = [render.render(r.scene) for r in rows if r.scene]
    assert len(images) in (0, b), "a batch has images in all rows or in none"
    return Batch(
        ids,
        allow[:, None],
        pos,
        labels,
        seg,
        pixels(np.stack(images)) if images else None,
        [[s.family for s in r.segments] for r in rows],
    )
