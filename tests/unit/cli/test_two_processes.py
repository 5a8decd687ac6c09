"""Two commands on one output: the second is refused in one line, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from errata.cli.shared.model import ModelOptions
from errata.core.errors import BadOutput, BadRun, InUse
from errata.core.files import read_json
from errata.core.locks import locked
from errata.core.state import State
from errata.evaluation.bench import bench
from errata.evaluation.judging import judge_run
from errata.io import states
from errata.judges.rendered_shapes import RenderedShapes
from tests.stub import NotesEditor, Stub

Errata = Callable[..., Any]


@contextmanager
def another_process(folder: Path, name: str = "") -> Iterator[int]:
    """Another process that works in the folder."""
    child = os.fork()
    if child == 0:
        with locked(folder, name=name):
            time.sleep(60)
        os._exit(0)
    lock = folder / (f".{name}.lock" if name else ".lock")
    while not lock.exists() or not lock.stat().st_size:
        time.sleep(0.002)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_two_of_every_command(errata: Errata, tmp_path: Path) -> None:
    edit = ("edit", "micro-vlm", "--editor", "ft_l", "--set", "steps=1", "--prompt", "p",
            "--target", "t")  # fmt: skip
    for words, name in (
        (edit, ""),
        ((*edit, "--each"), ""),
        (("demo", "--limit", "1"), ""),
        (("analyze", "attention", "micro-vlm", "--limit", "1"), "attention"),
        (("stats", "micro-vlm", "--corpus", tmp_path / "corpus", "--layers", "0"), ""),
    ):
        (tmp_path / "corpus").write_text("a ring\n")
        out = tmp_path / words[0]
        with another_process(out, name) as pid:
            ran = errata(*words, "--out", out)
            assert ran.code == 2 and f"in use by process {pid} on" in ran.err, (words, ran.err)
            assert ran.err.count("\n") == 1
            assert [n for n in os.listdir(out) if not n.startswith(".")] == []


def test_two_of_one_run(tmp_path: Path, errata: Errata) -> None:
    out = tmp_path / "run"
    with another_process(out), pytest.raises(InUse):
        bench(Stub(), NotesEditor(), "microworld:vqa@dev", "one_step", out, limit=1)
    assert os.listdir(out) == [".lock"]  # of the dead process


def test_two_judges_of_one_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with another_process(tmp_path / "run"), pytest.raises(InUse):
        judge_run(tmp_path / "run", RenderedShapes())
    with pytest.raises(BadRun):
        judge_run(tmp_path / "no-run", RenderedShapes())
    assert not (tmp_path / "no-run").exists()


def test_a_state_is_replaced_only_with_force(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    states.check_out(folder, force=False)
    State("e", {"a": 1}).save(folder)
    with pytest.raises(BadOutput, match="--force"):
        states.check_out(folder, force=False)
    states.check_out(folder, force=True)
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(BadOutput, match="holds no state"):
        states.check_out(folder, force=True)


def test_each_goes_on_after_a_kill(errata: Errata, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "target": "ring"} for i in range(3)]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ("edit", "micro-vlm", "--editor", "ft_l", "--set", "steps=1", "--edits", file, "--each",
             "--rows", "1", "--out", tmp_path / "out")  # fmt: skip
    assert errata(*words).code in (0, 3)
    made = {n: (tmp_path / "out" / n / "patch.json").read_bytes() for n in ("0001", "0003")}
    for name in os.listdir(tmp_path / "out" / "0002"):
        (tmp_path / "out" / "0002" / name).unlink()
    ran = errata(*words)
    assert ran.code in (0, 3), ran.err
    assert read_json(tmp_path / "out" / "0002" / "patch.json")["format"] == 1
    for name, content in made.items():  # those that were there are kept
        assert (tmp_path / "out" / name / "patch.json").read_bytes() == content
    (tmp_path / "out" / "letter.txt").write_text("mine")
    assert errata(*words).code == 2


def test_what_another_command_wrote_meanwhile_is_kept(
    errata: Errata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins and ends while this one loads its model."""
    load = ModelOptions.load
    for words, file in (
        (("edit", "--editor", "ft_l", "--set", "steps=0", "--prompt", "p", "--target", "t"),
         "patch.json"),
        (("prepare", "--editor", "ike", "--benchmark", "microworld:vqa", "--limit", "1"),
         "state.json"),
    ):  # fmt: skip
        out = tmp_path / words[0]

        def while_loading(
            self: ModelOptions, *heads: Any, folder: Path = out, file: str = file
        ) -> Any:
            folder.mkdir()
            (folder / file).write_text("theirs")
            return load(self, *heads)

        monkeypatch.setattr(ModelOptions, "load", while_loading)
        ran = errata(words[0], "micro-vlm", *words[1:], "--out", out)
        assert ran.code == 2 and "--force" in ran.err, ran.err
        assert (out / file).read_text() == "theirs"
