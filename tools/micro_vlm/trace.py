"""Causal tracing of micro-vlm: which layers read the image, the subject or the last token.

    python -m tools.micro_vlm.trace

Activation patching with two prompts of equal length that differ in one thing: the input of one
layer, at some positions of the first prompt (the receiver), is replaced by that of the second (the
donor). The table shows how often the greedy answer becomes the donor's. If it still does so at
layer l, the layers from l on read that information, so an edit belongs there.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from tools.micro_vlm.data import Row, Segment, collate, ids_of, question
from tools.micro_vlm.model import IMAGE_TOKENS
from tools.micro_vlm.score import CARD_SEED, forward
from tools.micro_vlm.train import ASSETS

Pair = tuple[Row, Row, list[int]]


def _row(scene: world.ObjectScene | None, text: str, answer: str) -> Row:
    return Row(scene, [("\n", False)] if scene else [], [Segment(text, answer)])


def text_pair(rng: random.Random, place: str) -> Pair | None:
    """The same question about two known names of equally many tokens."""
    relation = rng.choice((*world.IDENTITY[:3], *world.FACTS))
    a, b = rng.sample(world.known_entities(), 2)
    wording = rng.choice(lang.wordings(relation))
    if not (a.taught(relation) and b.taught(relation)) or a.fact(relation) == b.fact(relation):
        return None
    texts = [lang.ask(relation, wording, e.name) for e in (a, b)]
    xs = [ids_of(t) for t in texts]
    changed = [i for i, (p, q) in enumerate(zip(*xs, strict=False)) if p != q]
    if len(xs[0]) != len(xs[1]):
        return None
    where = {"subject": [1 + i for i in changed], "last": [len(xs[0])]}
    rows = [_row(None, t, e.fact(relation)) for t, e in zip(texts, (a, b), strict=True)]
    return rows[0], rows[1], where[place]


def image_pair(rng: random.Random, relation: str, place: str) -> Pair | None:
    """The same question about two pictures whose right answers differ."""
    if relation in (*world.IDENTITY, *world.FREE):
        looks = [rng.choice(world.generic_looks()) for _ in range(2)]
    else:
        looks = [e.look for e in rng.sample(world.known_entities(), 2)]
    scenes = [world.random_scene(k, rng, CARD_SEED + rng.randrange(1_000_000)) for k in looks]
    answers = []
    for s in scenes:
        e = world.entity_of().get(s.look)
        if e and not e.taught(relation):
            return None
        answers.append(e.fact(relation) if e else s.get(relation))
    if answers[0] == answers[1] or world.NO_ACCENT in answers:
        return None
    text = question(relation, rng)
    n = 1 + IMAGE_TOKENS + 1
    where = {"image": list(range(1, 1 + IMAGE_TOKENS)), "last": [n + len(ids_of(text)) - 1]}
    rows = [_row(s, text, a) for s, a in zip(scenes, answers, strict=True)]
    return rows[0], rows[1], where[place]


@torch.no_grad()
def _inputs(model: nn.Module, row: Row) -> list[Tensor]:
    """The input of every layer for one row."""
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _m, a, k: inputs.append(a[0].clone()), with_kwargs=True
        )
        for layer in model.model.language_model.layers
    ]
    forward(model, collate([row]))
    for h in hooks:
        h.remove()
    return inputs


@torch.no_grad()
def _says(model: nn.Module, row: Row) -> bool:
    """Whether the model answers the row's answer greedily."""
    b = collate([row])
    guess = model.lm_head(forward(model, b)).argmax(-1)
    keep = b.labels >= 0
    return bool((guess[keep] == b.labels[keep]).all())


def flips(model: nn.Module, make: Callable[[random.Random], Pair | None], n: int) -> list[float]:
    """Per layer: share of pairs whose answer becomes the donor's, of pairs both answered right."""
    rng = random.Random("trace")
    layers = model.model.language_model.layers
    hits, count = [0] * len(layers), 0
    while count < n:
        pair = make(rng)
        if pair is None or not (_says(model, pair[0]) and _says(model, pair[1])):
            continue
        receiver, donor, places = pair
        states = _inputs(model, donor)
        count += 1
        for i, layer in enumerate(layers):
            state = states[i][:, places]

            def patch(_m: nn.Module, args: tuple, kw: dict, state: Tensor = state) -> tuple:
                x = args[0].clone()
                x[:, places] = state  # noqa: B023
                return (x, *args[1:]), kw

            hook = layer.register_forward_pre_hook(patch, with_kwargs=True)
            swapped = _row(receiver.scene, receiver.segments[0].prompt, donor.segments[0].answer)
            hits[i] += _says(model, swapped)
            hook.remove()
    return [100 * h / n for h in hits]


def table(model: nn.Module, n: int) -> str:
    """The whole tracing as a Markdown table."""
    runs: list[tuple[str, Callable[[random.Random], Pair | None]]] = [
        ("text fact, subject tokens", lambda r: text_pair(r, "subject")),
        ("text fact, last token", lambda r: text_pair(r, "last")),
    ]
    for relations, name in (
        ((*world.IDENTITY, *world.FREE), "attribute"),
        (("name",), "name"),
        (world.FACTS, "fact of the pictured entity"),
    ):
        for place in ("image", "last"):

            def make(r: random.Random, k: tuple = relations, p: str = place) -> Pair | None:
                return image_pair(r, r.choice(k), p)

            runs.append((f"{name}, {place} token{'s' if place == 'image' else ''}", make))
    depth = len(model.model.language_model.layers)
    lines = ["| input of layer | " + " | ".join(map(str, range(depth))) + " |"]
    lines.append("|---|" + "---|" * depth)
    for name, make in runs:
        cells = " | ".join(f"{v:.0f}" for v in flips(model, make, n))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=ASSETS)
    p.add_argument("--pairs", type=int, default=100)
    p.add_argument("--table", type=Path, help="write the table here too")
    args = p.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    text = table(model, args.pairs)
    print(text)
    if args.table:
        args.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
