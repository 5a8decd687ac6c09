"""A small published file of records, and a stub that draws: what it draws is known beforehand.

The things are called velm0, velm1, ... and have a colour. The stub's picture is one pixel of the
colour that its prompt states last, else of the thing's own colour; an edit reaches the picture by
itself for things with an even number only. Its rationale states the colour that it believes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pil

from errata.core.editor import Editor, EditRequest, EditResult
from errata.core.kinds import DRAWN_KINDS
from errata.core.measure.judge import Judge
from errata.core.model.backbone import Backbone
from errata.core.model.generation import ImageGenerator
from errata.core.patch import parts_of
from errata.core.types import Case, JudgeQuestion, Prompt, Verdict
from errata.patches.rows import Rows
from tests.stub import Notes, Stub

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
NAMES = sorted(COLOURS)


def colours(i: int) -> tuple[str, str]:
    """(old, target) of thing i."""
    return NAMES[i % 4], NAMES[(i + 1 + i // 4 % 3) % 4]


def record(i: int, stages: Sequence[int] = (1, 2)) -> dict[str, Any]:
    old, target = colours(i)
    where = {1: "", 2: " in a garden", 3: " and a lamp", 4: " on a flag"}
    category = "pattern" if i % 3 == 0 else "color"
    made: dict[str, Any] = {"subject": f"Velm{i}", "category": category, "source": "attribute"}
    for k in stages:
        made[f"stage_{k}"] = {
            "question": f"What colour is velm{i}?",
            "prompt": f"The color of velm{i}{where[k]} is",
            "gt": old,
            "gt_target": target,
            "image_prompt": f"a photo of velm{i}{where[k]}",
            "visual_target": f"velm{i} is {target}",
            "vqa_question": f"What colour is velm{i}?",
        }
    return made


def write_records(folder: Path, count: int = 60) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "UniKE.json").write_text(json.dumps([record(i) for i in range(count)]))
    return folder


class Beliefs(Notes):
    """Thing -> the colour that it should have."""

    def say(self, prompt: Prompt, answer: str) -> str:
        thing = thing_of(prompt.text)
        if thing not in self.known:
            return answer
        believed = self.known[thing]
        return rationale(thing, believed) if "[Knowledge" in prompt.text else believed

    def pack(self) -> tuple[dict[str, Any], dict[str, Any]]:  # type: ignore[override]
        return {"known": self.known}, {}


def thing_of(text: str) -> str:
    found = re.search(r"velm\d+", text, re.IGNORECASE)
    return found[0].lower() if found else ""


def rationale(thing: str, colour: str) -> str:
    return f"The colour of {thing} is {colour}. [Visual Caption] {thing} in {colour}"


class Believer(Editor):
    name = "believer"

    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        return [
            EditResult(Beliefs({(e.subject or "").lower(): e.target for e in g}), s)
            for g, s in request
        ]


class Painter(Stub, ImageGenerator):
    """Counts what it draws; `draws` is [(prompt text, row)]."""

    capabilities = frozenset({"text", "generate", "draw"})

    def __init__(self, cases: Sequence[Case], delay: float = 0.0) -> None:
        super().__init__(delay, {p: a for c in cases for p, a in _right(c)})
        self.draws: list[tuple[str, int]] = []

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], *, rows: Any = None) -> Any:
        self.draws += [(p.text, int(r)) for p, r in zip(prompts, rows, strict=True)]
        return [
            [self._one(p.text, int(r), seed) for seed in seeds]
            for p, r in zip(prompts, rows, strict=True)
        ]

    def _one(self, text: str, row: int, seed: int) -> Pil.Image:
        stated = re.findall("|".join(NAMES), text)
        thing = thing_of(text)
        number = int(thing[4:])
        colour = stated[-1] if stated else colours(number)[0]
        for patch in self.hooks.stack if not stated and number % 2 == 0 else ():
            one = patch.members()[row] if isinstance(patch, Rows) else patch
            for part in parts_of(one):
                colour = part.known.get(thing, colour)  # type: ignore[union-attr,operator]
        picture = Pil.new("RGB", (2, 1), COLOURS[colour])
        picture.putpixel((1, 0), (seed, 0, 0))
        return picture


def _right(case: Case) -> list[tuple[Prompt, str]]:
    """What the untouched stub says: the old colour, and every gold answer."""
    out = []
    for p in case.probes:
        if p.kind in DRAWN_KINDS:
            continue
        thing = thing_of(p.prompt.text)
        old = colours(int(thing[4:]))[0]
        out.append((p.prompt, rationale(thing, old) if p.kind == "reasoning" else old))
    return out


class PixelJudge(Judge):
    """Reads the first pixel. Abstains on seed `blind` (the second pixel)."""

    name = "pixel"

    def __init__(self, blind: int = -1) -> None:
        self.blind, self.asked = blind, 0

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        self.asked += len(pictures)
        return [self._one(*one) for one in pictures]

    def _one(self, path: Path, view: JudgeQuestion) -> Verdict:
        with Pil.open(path) as picture:
            first, second = picture.getpixel((0, 0)), picture.getpixel((1, 0))
        if second[0] == self.blind:  # type: ignore[index]
            return Verdict(self.identity, note="too dark")
        answer = next(name for name, rgb in COLOURS.items() if rgb == first)
        return Verdict(self.identity, answer, answer == view.target)
