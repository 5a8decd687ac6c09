"""The main job, smaller: `errata demo` on the bundled model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from errata.cli import main
from errata.cli.demo import MARK, PICTURES
from errata.cli.shared.options import bundled_models
from tests.short import short_microworld

trained = pytest.mark.skipif("micro-vlm" not in bundled_models(), reason="no bundled model")


@trained
@pytest.mark.trained
@pytest.mark.slow
def test_demo(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    out = tmp_path / "demo"
    out.mkdir()
    (out / MARK).write_text("an earlier demo, which this one replaces")
    (out / "old").mkdir()
    with short_microworld(train=40, eval=12), pytest.raises(SystemExit) as exit_:
        main(["demo", "--out", str(out), "--limit", "2"])
    said = capsys.readouterr()
    assert not exit_.value.code, said.err
    assert not (out / "old").exists()
    assert all(name in said.out for name in PICTURES.editors)
    before, edited, undone = (
        re.search(rf"^  {line} +(.*)$", said.out, re.MULTILINE)
        for line in ("before the edit", "with the patch", "patch removed")
    )
    assert before and edited and undone
    assert before[1] == undone[1]
    assert "the same as before the first edit" in said.out
    assert str(out / "report.html") in said.out
    assert (out / "report.html").stat().st_size > 10_000


def test_demo_leaves_foreign_folders_alone(tmp_path: Path, capsys):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert "holds no demo" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "mine"


@trained
@pytest.mark.trained
def test_an_editor_without_its_state_is_left_out_and_said(capsys, monkeypatch):
    """As in an installation from the wheel, which has no states."""
    from errata import load
    from errata.cli.demo import _possible
    from errata.io import states

    model = load("micro-vlm")
    assert _possible(PICTURES, model) == PICTURES
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(states, "_shipped", lambda: [])
    assert _possible(PICTURES, model).editors == ("ft_l", "ft_v", "tpatcher", "ike")
    said = capsys.readouterr().out
    assert said.startswith("unike is left out") and "errata prepare micro-vlm" in said
