"""A training that is killed and repeated writes the same state, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errata.cli import main
from tests import tiny

FILES = ("state.json", "state.safetensors", "README.md")
SETTINGS = {
    "mend": ("layers=[2,3]", "rank=8", "edit_lr=-0.01"),
    "ke": ("layers=[2,3]", "hidden=8", "condition=8", "width=8"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backbone = tiny.llava()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def command(model: Path, editor: str, out: Path) -> list[str]:
    settings = (*SETTINGS[editor], "steps=12", "batch=2", "held_out=4", "every=2", "keep=1")
    words = ["prepare", str(model), "--editor", editor, "--benchmark", "microworld:vqa",
             "--limit", "24", "--out", str(out)]  # fmt: skip
    return words + [word for s in settings for word in ("--set", s)]


def finished(model: Path, editor: str, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(command(model, editor, out))
    said = capsys.readouterr()
    assert not exit_.value.code, said.err
    assert f"{editor}: training 12/12" in said.err  # plain lines where there is no terminal
    return said.out


@pytest.mark.slow
@pytest.mark.parametrize("editor", sorted(SETTINGS))
def test_killed_and_repeated_is_the_same_state(
    editor: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    run = subprocess.Popen(
        [sys.executable, "-m", "errata", *command(model, editor, broken)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    point = broken / "training.safetensors"
    while not point.exists() and run.poll() is None:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    _, err = run.communicate()
    assert point.exists() and not (broken / "state.json").exists(), err.decode()
    finished(model, editor, broken, capsys)
    assert "written to" in finished(model, editor, whole, capsys)
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert {f.name for f in broken.iterdir()} == {*FILES, "timing.json"}
    card = (whole / "README.md").read_text()
    assert "| step |" in card and "| 12 |" in card
    account = json.loads((whole / "state.json").read_text())["meta"]["training"]
    assert account["steps"] == 12 and len(account["curve"]) == 7
