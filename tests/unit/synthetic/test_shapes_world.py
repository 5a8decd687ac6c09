"""The world of micro-umm: balanced facts, wordings that are really held out, exact pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import (
    ATTRIBUTES,
    OBJECTS,
    RELATIONS,
    SETTINGS,
    STAGE_OF,
    ShapeScene,
    fact,
    scene_of,
)
from errata.synthetic.shapes.render import BADGE, CORNER, GROUND, SIDE, badge, render


def test_objects_and_their_facts() -> None:
    assert len(OBJECTS) == 80 and len({o.name for o in OBJECTS}) == 80
    assert sum(not o.drawn for o in OBJECTS) == 21
    for attribute, values in ATTRIBUTES.items():
        for drawn in (True, False):
            counts = Counter(fact(o, attribute) for o in OBJECTS if o.drawn == drawn)
            assert set(counts) == set(values)
            assert max(counts.values()) - min(counts.values()) <= 1


def test_held_wordings_are_new_pairs_of_trained_parts() -> None:
    for what in (*ATTRIBUTES, "caption"):
        groups = [set(lang.wordings(what, g)) for g in (lang.SEEN, lang.DEV, lang.HELD)]
        assert [len(g) for g in groups] == [12, 2, 2]
        assert len(set.union(*groups)) == 16
        seen = groups[0]
        for new in groups[1] | groups[2]:
            assert any(w.template == new.template for w in seen)
            assert any(w.noun == new.noun for w in seen)


def test_how_things_are_said() -> None:
    assert lang.question("colour", "dax") == "The colour of a dax is"
    assert lang.caption("dax", setting="lawn", colour="orange", size="big") == (
        "a photo of a big orange dax on a lawn"
    )
    assert lang.oracle("dax", setting="flag", shape="ring", home="Avaria") == (
        "a photo of a flag of a dax whose shape is ring and whose home is Avaria"
    )
    assert lang.caption("dax", shape="ring", maker="Pym", setting="tree") == (
        "a photo of a dax shaped like a ring made by Pym beside a tree"
    )
    prompt = lang.caption("dax", setting="lamp")
    assert lang.reasoning("home", "dax", prompt) == (
        "Target: dax. Attribute: home. Prompt: a photo of a dax beside a lamp. [Knowledge Recall]"
    )
    assert lang.rationale("home", "dax", "Umber", setting="lamp") == (
        "the home of a dax is Umber. [Scene] a dax beside a lamp. "
        "[Visual Caption] a photo of a dax from Umber beside a lamp"
    )


@pytest.mark.parametrize("setting", STAGE_OF)
def test_a_picture_is_its_scene(setting: str) -> None:
    thing = OBJECTS[3]
    one = render(scene_of(thing, setting, 1))
    assert one.shape == (SIDE, SIDE, 3) and one.dtype == np.uint8
    assert np.array_equal(one, render(scene_of(thing, setting, 1)))
    assert not np.array_equal(one, render(scene_of(thing, setting, 2)))
    for attribute, values in ATTRIBUTES.items():
        other = next(v for v in values if v != fact(thing, attribute))
        changed = render(scene_of(thing, setting, 1, **{attribute: other}))
        assert np.abs(changed.astype(int) - one).max() > 40, attribute


def test_marks_lie_where_they_should() -> None:
    for maker, (row, column, white) in BADGE.items():
        picture = render(ShapeScene("red", "disc", "plain", "small", maker=maker, home="Quorra"))
        part = picture[row * 25 : row * 25 + CORNER, column * 25 : column * 25 + CORNER]
        assert np.abs(part.astype(int) - badge(white)).max() < 16
        assert np.abs(picture[4, 10].astype(int) - np.asarray(GROUND["Quorra"])).max() < 24
    assert set(GROUND) == {"", *ATTRIBUTES["home"]} and set(BADGE) == set(ATTRIBUTES["maker"])
    assert RELATIONS == ("home", "maker") and set(SETTINGS) == {1, 2, 3, 4}
