"""`errata draw` on the bundled model: pictures, edits that reach them, rationales, plain errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from errata.backbones import load
from errata.cli import main
from errata.core.types import Prompt
from errata.judges.rendered_shapes import read
from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, OBJECTS

THING = next(o for o in OBJECTS if o.drawn)
PROMPT = lang.caption(THING.name)


@pytest.fixture
def errata(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


def test_the_model_draws_what_it_knows(errata, tmp_path):
    one, again, other = (tmp_path / f"{n}.png" for n in "abc")
    assert errata("draw", "micro-umm", PROMPT, "--out", one)[0] == 0
    assert errata("draw", "micro-umm", PROMPT, "--out", again, "--seed", 0)[0] == 0
    assert errata("draw", "micro-umm", PROMPT, "--out", other, "--seed", 1)[0] == 0
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    seen = read(np.asarray(Pillow.open(one)))
    right = [a for a in ATTRIBUTES if seen[a] == getattr(THING, a)]
    assert len(right) >= 5, seen


def test_a_stated_colour_is_drawn(errata, tmp_path):
    out = tmp_path / "a.png"
    prompt = lang.caption(THING.name, colour="orange")
    code, told, err = errata("draw", "micro-umm", prompt, "--out", out, "--json")
    assert code == 0, err
    assert json.loads(told)["drawn from"] == prompt
    bb = load("micro-umm")
    colours = ATTRIBUTES["colour"]
    prompts = [Prompt.of(lang.caption(THING.name, colour=c)) for c in colours]
    drawn = bb.draw(prompts, [0])
    seen = [read(np.asarray(picture))["colour"] for (picture,) in drawn]
    assert sum(s == c for s, c in zip(seen, colours, strict=True)) >= 6, seen
    assert Pillow.open(out).tobytes() == drawn[colours.index("orange")][0].tobytes()


def test_a_rationale_comes_first_and_an_edit_changes_it(errata, tmp_path):
    draw = ("draw", "micro-umm", PROMPT, "--reason", "--out", tmp_path / "a.png")
    code, out, err = errata(*draw)
    assert code == 0, err
    assert out.startswith(f"the colour of a {THING.name} is {THING.colour}. {lang.SETTING}")
    target = next(v for v in ATTRIBUTES["colour"] if v != THING.colour)
    asked = lang.question("colour", THING.name)
    edit = ("--editor", "ft_l", "--set", "layers=[-2]", "--prompt", asked, "--target", target)
    made = errata("edit", "micro-umm", *edit, "--out", tmp_path / "patch")
    assert made[0] == 0, made[2]
    assert errata("ask", "micro-umm", "--patch", tmp_path / "patch", asked)[1].strip() == target
    before = (tmp_path / "a.png").read_bytes()
    code, edited, err = errata(*draw, "--patch", tmp_path / "patch")
    assert code == 0, err
    assert edited.splitlines()[0] != out.splitlines()[0]
    assert (tmp_path / "a.png").read_bytes() != before


def test_errors_are_one_line(errata, tmp_path):
    for arguments, said in (
        (("micro-vlm", PROMPT, "--out", tmp_path / "a.png"), "draws no pictures"),
        (("micro-umm", PROMPT, "--out", tmp_path / "a.txt"), "is no picture's name"),
        (("micro-umm", PROMPT, "--out", tmp_path / "no" / "a.png"), "there is no folder"),
        (("micro-umm", PROMPT, "--patch", tmp_path, "--out", tmp_path / "a.png"), "not a patch"),
        (("micro-umm", "a horse", "--reason", "--out", tmp_path / "a.png"), "one object"),
    ):
        code, _, err = errata("draw", *arguments)
        assert code == 2 and said in err
        assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.png"))


def test_doctor_finds_nothing_missing(errata):
    code, out, err = errata("doctor", "micro-umm", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["missing"] == [] and facts["own forward"]["equal"]
    assert "draw" in facts["capabilities"]
    assert facts["sites"]["bridge"] == "projector"
