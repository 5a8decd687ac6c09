"""Causal tracing of micro-umm: which layers read the name, which the last token.

    python -m tools.micro_umm.trace

Activation patching with two prompts of equal length that differ in the name alone: the input of one
layer, at some positions of the first prompt (the receiver), is replaced by that of the second (the
donor). The table shows how often the answer, or what the picture shows, becomes the donor's, of
pairs where both were right before. If it still does so at layer l, the layers from l on read it.

Shapes: B pairs, T tokens, d width.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from errata.backbones.micro_umm import MicroUmmBackbone
from errata.core.hooks.context import HookContext
from errata.core.model.recorder import Recorder
from errata.core.types import Prompt
from errata.judges.rendered_shapes import read
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS, ShapeObject, fact
from tools.micro_umm.train import ASSETS


class Swap(Recorder):
    """Replaces the hidden states of row b at `site`, in columns[b], by the donor's."""

    def __init__(self, site: str, states: list[Tensor], columns: list[list[int]]) -> None:
        super().__init__((site,))
        self.states, self.columns = states, columns

    def at(self, site: str, x: Tensor, y: Tensor, ctx: HookContext) -> Tensor:
        if ctx.prefilled:
            return y
        out = y.clone()
        for b, (state, columns) in enumerate(zip(self.states, self.columns, strict=True)):
            out[b, columns] = state
        return out


@dataclass(frozen=True, slots=True)
class Pair:
    """`attribute` of the two names differs; the donor's value is wanted."""

    receiver: str
    donor: str
    names: tuple[str, str]
    attribute: str
    wanted: str


def pairs(bb: MicroUmmBackbone, rng: random.Random, n: int, form: str) -> list[Pair]:
    """Pairs of names of equally many tokens, and the same prompt about both."""
    out: list[Pair] = []
    length = {o.name: len(bb._ids(" " + o.name, False)) for o in OBJECTS}
    while len(out) < n:
        a, b = rng.sample(OBJECTS, 2)
        attribute = rng.choice(tuple(ATTRIBUTES))
        if length[a.name] != length[b.name] or fact(a, attribute) == fact(b, attribute):
            continue
        if form == "picture" and not (a.drawn and b.drawn):
            continue
        texts = _texts(rng, a, b, attribute, form)
        out.append(Pair(*texts, (a.name, b.name), attribute, fact(b, attribute)))
    return out


def _texts(
    rng: random.Random, a: ShapeObject, b: ShapeObject, attribute: str, form: str
) -> tuple[str, str]:
    if form == "picture":
        wording = rng.choice(lang.wordings("caption"))
        # with a setting, so that the name is not the last token too
        return lang.caption(a.name, wording, "lawn"), lang.caption(b.name, wording, "lawn")
    wording = rng.choice(lang.wordings(attribute))
    return lang.question(attribute, a.name, wording), lang.question(attribute, b.name, wording)


def columns_of(bb: MicroUmmBackbone, text: str, name: str, place: str) -> list[int]:
    """The columns of the name's tokens, or of the last token."""
    ids = list(bb._ids(text, True))
    if place == "last":
        return [len(ids) - 1]
    for part in (bb._ids(" " + name, False), bb._ids(name, False)):
        for k in range(len(ids)):
            if ids[k : k + len(part)] == list(part):
                return list(range(k, k + len(part)))
    raise AssertionError(f"no {name} in {text}")


def shows(bb: MicroUmmBackbone, texts: list[str], attributes: list[str], form: str) -> list[str]:
    """What the model answers, or what its pictures show."""
    prompts = [Prompt.of(t) for t in texts]
    if form == "picture":
        drawn = [p for (p,) in bb.draw(prompts, [0])]
        return [read(np.asarray(p))[a] for p, a in zip(drawn, attributes, strict=True)]
    generated = bb.generate(bb.encode(prompts), [8] * len(prompts))
    return [bb.decode(g.ids) for g in generated]


def flips(bb: MicroUmmBackbone, form: str, place: str, n: int) -> tuple[list[float], int]:
    """Per layer the share that flips, and of how many pairs."""
    rng = random.Random(f"trace/{form}")
    hits, count = np.zeros(bb.depth), 0
    for _ in range(0, n, 25):
        chosen = pairs(bb, rng, 25, form)
        attributes = [p.attribute for p in chosen]
        donor_values = shows(bb, [p.donor for p in chosen], attributes, form)
        keep = [k for k, p in enumerate(chosen) if donor_values[k] == p.wanted]
        chosen = [chosen[k] for k in keep]
        attributes = [p.attribute for p in chosen]
        count += len(chosen)
        recorder = Recorder(f"text.{i}.in" for i in range(bb.depth))
        with bb.applied(recorder), torch.no_grad():
            bb.logits(bb.encode([Prompt.of(p.donor) for p in chosen]))
        columns = [columns_of(bb, p.receiver, p.names[0], place) for p in chosen]
        source = [columns_of(bb, p.donor, p.names[1], place) for p in chosen]
        for i in range(bb.depth):
            site = f"text.{i}.in"
            states = [recorder.y[site][b, c] for b, c in enumerate(source)]
            with bb.applied(Swap(site, states, columns)):
                swapped = shows(bb, [p.receiver for p in chosen], attributes, form)
            hits[i] += sum(s == p.wanted for s, p in zip(swapped, chosen, strict=True))
    return [100 * h / count for h in hits], count


def table(bb: MicroUmmBackbone, n: int, pictures: int) -> str:
    """The whole tracing as a Markdown table."""
    lines = ["| input of layer | " + " | ".join(map(str, range(bb.depth))) + " | pairs |"]
    lines.append("|---|" + "---|" * (bb.depth + 1))
    for form, name, count in (("fact", "fact in text", n), ("picture", "picture", pictures)):
        for place, where in (("subject", "name's tokens"), ("last", "last token")):
            shares, asked = flips(bb, form, place, count)
            cells = " | ".join(f"{v:.0f}" for v in shares)
            lines.append(f"| {name}, {where} | {cells} | {asked} |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, default=ASSETS)
    p.add_argument("--pairs", type=int, default=200)
    p.add_argument("--pictures", type=int, default=50)
    p.add_argument("--table", type=Path, help="write the table here too")
    args = p.parse_args()
    torch.set_num_threads(1)
    text = table(MicroUmmBackbone.load(str(args.model)), args.pairs, args.pictures)
    print(text)
    if args.table:
        args.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
