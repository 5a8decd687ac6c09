"""The programmatic reader, on fresh renders that no threshold was chosen on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from errata.core.types import JudgeQuestion
from errata.judges.rendered_shapes import RenderedShapes, read
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS, SETTINGS, ShapeScene, scene_of
from errata.synthetic.shapes.render import render

SETTING_NAMES = [s for stage in SETTINGS.values() for s in stage]


def fresh(n: int) -> list[ShapeScene]:
    """Every setting in turn; values, and whether there are marks, at random."""
    rng = random.Random("fresh renders of the reader's test")
    out = []
    for k in range(n):
        values = {a: rng.choice(v) for a, v in ATTRIBUTES.items()}
        for mark in ("home", "maker"):
            if rng.random() < 0.3:
                values[mark] = ""
        setting = SETTING_NAMES[k % len(SETTING_NAMES)]
        out.append(ShapeScene(**values, setting=setting, seed=rng.randrange(1 << 40)))
    return out


def test_every_attribute_is_read_right_on_fresh_renders() -> None:
    scenes = fresh(300)
    seen = [read(render(s)) for s in scenes]
    for attribute in ATTRIBUTES:
        pairs = [(r[attribute], getattr(s, attribute)) for r, s in zip(seen, scenes, strict=True)]
        right = sum(found == true for found, true in pairs)
        assert right >= 0.99 * len(pairs), (attribute, [p for p in pairs if p[0] != p[1]])


@pytest.mark.parametrize("setting", SETTING_NAMES)
def test_objects_are_read_in_every_setting(setting: str) -> None:
    for k, thing in enumerate(OBJECTS[:8]):
        scene = scene_of(thing, setting, seed=10_000 + k)
        assert read(render(scene)) == {a: getattr(thing, a) for a in ATTRIBUTES}


def test_what_shows_nothing_is_not_read() -> None:
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    assert not any(read(noise).values())
    grey = np.full((30, 30, 3), 178, dtype=np.uint8)
    assert not any(read(grey).values())


def test_a_hidden_part_is_not_guessed() -> None:
    scene = scene_of(OBJECTS[0], "", 3)
    picture = render(scene)
    half = picture.copy()
    half[:, 12:] = half[2, 12]  # three fifths of the thing are painted over
    assert read(half)["colour"] in ("", scene.colour)
    two = picture.copy()
    two[:5, :5], two[:5, -5:] = (
        render(ShapeScene("red", "disc", "plain", "big", maker=m))[:5, part]
        for m, part in (("Orlin", slice(0, 5)), ("Orbeck", slice(25, 30)))
    )
    assert read(two)["maker"] == ""


def test_verdicts(tmp_path: Path) -> None:
    thing = OBJECTS[0]
    good, small = tmp_path / "a.png", tmp_path / "b.png"
    Pillow.fromarray(render(scene_of(thing, "lawn", 1))).save(good)
    Pillow.new("RGB", (8, 8)).save(small)
    other = next(v for v in ATTRIBUTES["colour"] if v != thing.colour)
    views = {
        "right": (good, JudgeQuestion("Which colour?", "", thing.colour, category="colour")),
        "wrong": (good, JudgeQuestion("Which colour?", "", other, category="colour")),
        "unknown": (good, JudgeQuestion("Which price?", "", "high", category="price")),
        "size": (small, JudgeQuestion("Which colour?", "", "red", category="colour")),
        "missing": (
            tmp_path / "c.png",
            JudgeQuestion("Which colour?", "", "red", category="colour"),
        ),
    }
    said = dict(zip(views, RenderedShapes().judge(list(views.values())), strict=True))
    assert (said["right"].answer, said["right"].meets) == (thing.colour, True)
    assert (said["wrong"].answer, said["wrong"].meets) == (thing.colour, False)
    for name, note in (
        ("unknown", "none of the attributes"),
        ("size", "8 x 8"),
        ("missing", "c.png"),
    ):
        assert said[name].meets is None and said[name].answer == ""
        assert note in said[name].note


def test_a_verdict_holds_what_else_is_read(tmp_path: Path) -> None:
    thing = OBJECTS[0]
    Pillow.fromarray(render(scene_of(thing, "", 3))).save(tmp_path / "a.png")
    view = JudgeQuestion("?", "!", thing.colour, "", "colour")
    (verdict,) = RenderedShapes().judge([(tmp_path / "a.png", view)])
    assert verdict.answer == thing.colour and verdict.meets
    assert dict(verdict.shown) == {a: getattr(thing, a) for a in ATTRIBUTES if a != "colour"}
