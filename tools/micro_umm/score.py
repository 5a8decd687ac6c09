"""Accuracy of micro-umm: facts in text, its rationales, and what its pictures show.

    python -m tools.micro_umm.score [--work FOLDER] [--text]

Pictures are read by the judge `rendered_shapes`; an attribute that it cannot read counts as wrong.
Every cell is a percentage with its number of cases.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from errata.backbones._micro_umm import MicroUmm as Model
from errata.backbones.micro_umm import MicroUmmBackbone
from errata.core.text import mentions
from errata.core.types import Prompt
from errata.judges.rendered_shapes import read
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS, SETTINGS, ShapeObject, fact
from tools.micro_umm import data

ROWS = 16


@dataclass(frozen=True, slots=True)
class DrawPrompt:
    """A prompt that is drawn, what its picture must show, and which of that the prompt states."""

    text: str
    shown: dict[str, str]
    stated: tuple[str, ...]


def _place(rng: random.Random, stage: int) -> str:
    return rng.choice(SETTINGS[stage])


def implicit(rng: random.Random, thing: ShapeObject, stage: int, group: str) -> DrawPrompt:
    """A caption that states no attribute."""
    text = lang.caption(thing.name, rng.choice(lang.wordings("caption", group)), _place(rng, stage))
    return DrawPrompt(text, data.seen_values(thing, {}), tuple(ATTRIBUTES))


def other(rng: random.Random, thing: ShapeObject, attribute: str) -> str:
    return rng.choice([v for v in ATTRIBUTES[attribute] if v != fact(thing, attribute)])


def explicit(rng: random.Random, thing: ShapeObject, stage: int, group: str) -> DrawPrompt:
    """A caption that states one false value."""
    attribute = rng.choice(tuple(ATTRIBUTES))
    stated = {attribute: other(rng, thing, attribute)}
    style = rng.choice((lang.caption, lang.oracle))
    wording = rng.choice(lang.wordings("caption", group))
    text = style(thing.name, wording, _place(rng, stage), **stated)
    return DrawPrompt(text, data.seen_values(thing, stated), (attribute,))


def reasoned(form: str) -> Callable[[random.Random, ShapeObject, int, str], DrawPrompt]:
    """A rationale that states one false value, alone, before the prompt, or as an instruction."""

    def make(rng: random.Random, thing: ShapeObject, stage: int, group: str) -> DrawPrompt:
        attribute = rng.choice(tuple(ATTRIBUTES))
        value = other(rng, thing, attribute)
        wording, where = rng.choice(lang.wordings("caption", group)), _place(rng, stage)
        text = lang.rationale(attribute, thing.name, value, wording, where)
        prompt = lang.caption(thing.name, wording, where)
        if form != "replace":
            text += lang.GLUE + (lang.INSTRUCT if form == "instruct" else "") + prompt
        return DrawPrompt(text, data.seen_values(thing, {attribute: value}), (attribute,))

    return make


KINDS = {
    "implicit": implicit,
    "explicit": explicit,
    "rationale, replace": reasoned("replace"),
    "rationale, prepend": reasoned("prepend"),
    "rationale, instruct": reasoned("instruct"),
}
Tally = dict[str, list[bool]]
#: (kind of prompt, objects, attributes) -> attribute -> right or not
Table = dict[tuple[str, str, str], Tally]


def things(drawn: bool, n: int) -> Iterator[ShapeObject]:
    group = [o for o in OBJECTS if o.drawn == drawn]
    for k in range(n):
        yield group[k % len(group)]


def drawn_right(
    bb: MicroUmmBackbone, kind: str, drawn: bool, n: int, group: str, seed: str
) -> tuple[Tally, Tally]:
    """(stated or all attributes, the others): attribute -> whether each picture shows it."""
    rng = random.Random(f"{seed}/{kind}/{drawn}/{group}")
    prompts = [KINDS[kind](rng, o, 1 + k % 4, group) for k, o in enumerate(things(drawn, n))]
    stated: Tally = {a: [] for a in ATTRIBUTES}
    rest: Tally = {a: [] for a in ATTRIBUTES}
    for k in range(0, n, ROWS):
        part = prompts[k : k + ROWS]
        pictures = bb.draw([Prompt.of(p.text) for p in part], [rng.randrange(1 << 20)])
        for p, (picture,) in zip(part, pictures, strict=True):
            values = read(np.asarray(picture))
            for a in ATTRIBUTES:
                (stated if a in p.stated else rest)[a].append(values[a] == p.shown[a])
    return stated, rest


def percent(marks: Sequence[bool]) -> str:
    return f"{100 * sum(marks) / len(marks):.0f} ({len(marks)})" if marks else ""


def flat(tally: Tally) -> list[bool]:
    return [m for marks in tally.values() for m in marks]


def picture_table(bb: MicroUmmBackbone, n: int, group: str, seed: str) -> tuple[str, Table]:
    """Per kind of prompt and kind of object, percent right (number) per attribute, in Markdown."""
    head = ["prompt", "objects", "attributes", *ATTRIBUTES, "all"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    tables: Table = {}
    for kind in KINDS:
        for drawn in (True, False):
            stated, rest = drawn_right(bb, kind, drawn, n, group, seed)
            for name, tally in (
                ("stated" if kind != "implicit" else "all", stated),
                ("others", rest),
            ):
                if flat(tally):
                    who = "drawn" if drawn else "never drawn"
                    tables[kind, who, name] = tally
                    cells = [percent(tally[a]) for a in ATTRIBUTES] + [percent(flat(tally))]
                    lines.append(f"| {kind} | {who} | {name} | {' | '.join(cells)} |")
                    print(lines[-1], flush=True)
    return "\n".join(lines), tables


def facts_right(bb: MicroUmmBackbone, group: str) -> dict[str, list[bool]]:
    """attribute -> per object: does greedy decoding give the value and then end?."""
    rng = random.Random(f"facts/{group}")
    out: dict[str, list[bool]] = {}
    for attribute in ATTRIBUTES:
        prompts = [
            Prompt.of(lang.question(attribute, o.name, rng.choice(lang.wordings(attribute, group))))
            for o in OBJECTS
        ]
        answers = bb.generate(bb.encode(prompts), [8] * len(prompts))
        out[attribute] = [
            g.stopped and bb.decode(g.ids) == fact(o, attribute)
            for g, o in zip(answers, OBJECTS, strict=True)
        ]
    return out


#: what a rationale is scored on
PARTS = ("fact", "caption", "setting", "verbatim")


def rationales_right(bb: MicroUmmBackbone, drawn: bool, n: int, group: str) -> dict[str, Tally]:
    """part -> attribute -> right or not, of the rationales that the model writes.

    fact: step 1 states the true value. caption: step 3 states it too, of the same name. setting:
    step 2 and 3 copy it. verbatim: word for word the trained rationale, its end included.
    """
    rng = random.Random(f"rationales/{drawn}/{group}")
    out: dict[str, Tally] = {p: {a: [] for a in ATTRIBUTES} for p in PARTS}
    rows = []
    for k, o in enumerate(things(drawn, n)):
        attribute = tuple(ATTRIBUTES)[k % len(ATTRIBUTES)]
        wording = rng.choice(lang.wordings("caption", group))
        where = _place(rng, 1 + k % 4)
        prompt = lang.reasoning(attribute, o.name, lang.caption(o.name, wording, where))
        value = fact(o, attribute)
        want = lang.rationale(attribute, o.name, value, wording, where)
        rows.append((attribute, prompt, value, o.name, where, want))
    for k in range(0, n, 32):
        part = rows[k : k + 32]
        batch = bb.encode([Prompt.of(r[1]) for r in part])
        answers = bb.generate(batch, [80] * len(part))
        for (attribute, _, value, name, where, want), g in zip(part, answers, strict=True):
            text = bb.decode(g.ids)
            first, _, rest = text.partition(lang.SETTING)
            scene, _, caption = rest.partition(lang.CAPTION)
            marks = (
                first.split()[-1:] == [f"{value}."] and mentions(first, name),
                mentions(caption, value) and mentions(caption, name),
                all(mentions(t, where) or not where for t in (scene, caption)),
                g.stopped and text == want,
            )
            for p, mark in zip(PARTS, marks, strict=True):
                out[p][attribute].append(mark)
    return out


def text_table(bb: MicroUmmBackbone, n: int) -> str:
    head = ["text", *ATTRIBUTES, "all"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    rows = {f"facts, {g} wordings": facts_right(bb, g) for g in ("seen", "dev", "held")}
    for drawn in (True, False):
        who = "drawn" if drawn else "never drawn"
        for g in ("seen", "held"):
            for part, tally in rationales_right(bb, drawn, n, g).items():
                rows[f"own rationale, {part}, {who}, {g} captions"] = tally
    for name, tally in rows.items():
        cells = [percent(tally[a]) for a in ATTRIBUTES] + [percent(flat(tally))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def from_work(work: Path) -> MicroUmmBackbone:
    """The model of the last checkpoints in a work folder, with the averaged generator."""
    from tools.micro_umm.train import fresh, load_picture, load_text

    model: Model = fresh()
    load_text(model, work)
    load_picture(model, work)
    return MicroUmmBackbone(model, data.tokenizer(), name="micro-umm")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--work", type=Path, help="a work folder (default: the bundled model)")
    p.add_argument("--pictures", type=int, default=64)
    p.add_argument("--group", default="seen")
    p.add_argument("--text", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(1)
    bb = from_work(args.work) if args.work else MicroUmmBackbone.load("micro-umm")
    if args.text:
        print(text_table(bb, 120))
    picture_table(bb, args.pictures, args.group, "tuning")


if __name__ == "__main__":
    main()
