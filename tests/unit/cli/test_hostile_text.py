"""What comes from files, patches and models is printed without control characters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.cli import main
from errata.cli.shared.printing import print_json, printable, say, show_table
from errata.core.errors import MissingState
from errata.core.state import State
from errata.evaluation import cache
from errata.io.states import store_if_possible

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnir\udcff\x00"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]")
Errata = Callable[..., Any]


def test_every_way_to_print(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(Text(HOSTILE))
    say(HOSTILE)
    say(HOSTILE, err=True)
    print_json({HOSTILE: [HOSTILE]})
    out = capsys.readouterr()
    assert json.loads(out.out.split("\n", 1)[1]) == {HOSTILE: [HOSTILE]}
    show_table(table)
    for text in (out.out, out.err, capsys.readouterr().out):
        assert not CONTROLS.search(text) and "owned" in text
    assert printable("a\tb\nc é 环") == "a\tb\nc é 环"


def test_a_patch_of_somebody_else(errata: Errata, tmp_path: Path) -> None:
    from errata.core.patch import Header
    from errata.core.types import Edit, Prompt
    from errata.io.patch_folder import save
    from errata.patches.stack import Stack

    edit = Edit(Prompt.of("\x1b[31mWhat?"), "\x1b]0;x\x07red", id="a")
    save(Stack([]).with_header(Header(editor="\x1b[2J", fingerprint="f"), [edit]), tmp_path / "p")
    for words in (("show",), ("show", "--json")):
        ran = errata("patch", *words, tmp_path / "p")
        assert ran.code == 0 and not CONTROLS.search(ran.out) and "What?" in ran.out
    wrong = errata("ask", "micro-vlm", "x", "--patch", tmp_path / "\x1b[31m")
    assert wrong.code == 2 and not CONTROLS.search(wrong.err)


@pytest.mark.parametrize("word", ["a\0b", os.fsdecode(b"\xff")])
def test_an_argument_that_is_no_text(capsys: pytest.CaptureFixture[str], word: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["ask", "micro-vlm", word])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("shell", "code"), [(">/dev/full", 2), ("| true; exit ${PIPESTATUS[0]}", 141)]
)
def test_an_output_that_takes_nothing(shell: str, code: int) -> None:
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m errata list editors {shell}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode in (code, 0 if code == 141 else code)  # it may have ended before
    assert "Traceback" not in ran.stderr and "Exception ignored" not in ran.stderr
    assert code == 141 or "cannot print: No space left" in ran.stderr


def test_a_state_that_is_not_the_one_that_was_saved(tmp_path: Path) -> None:
    import torch

    State("e", {"a": 1}, {"w": torch.zeros(3)}).save(tmp_path / "s")
    State("e", {"a": 1}, {"w": torch.ones(3)}).save(tmp_path / "other")
    State.load(tmp_path / "s")
    blob = (tmp_path / "other" / "state.safetensors").read_bytes()
    whole = (tmp_path / "s" / "state.safetensors").read_bytes()
    (tmp_path / "s" / "state.safetensors").write_bytes(blob)
    with pytest.raises(MissingState, match="not the one whose hash"):
        State.load(tmp_path / "s")
    (tmp_path / "s" / "state.safetensors").write_bytes(whole)
    head = json.loads((tmp_path / "s" / "state.json").read_text())
    (tmp_path / "s" / "state.json").write_text(json.dumps({**head, "meta": {"a": 2}}))
    with pytest.raises(MissingState, match="not the one whose hash"):
        State.load(tmp_path / "s")
    del head["digest"]  # as before
    (tmp_path / "s" / "state.json").write_text(json.dumps(head))
    State.load(tmp_path / "s")


def test_an_unwritable_home_is_said_and_done_without(
    errata: Errata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "file"))
    refused = errata("prepare", "micro-vlm", "--editor", "mend", "--benchmark", "microworld:vqa")
    assert refused.code == 2 and "Give --out DIR" in refused.err
    with pytest.warns(UserWarning, match="kept in memory only"):
        assert store_if_possible(State("e", {"a": 1})) is None
    with pytest.warns(UserWarning, match="kept in memory only"):
        cache.store("key", {"a": 1})
    assert cache.load("key") is None
