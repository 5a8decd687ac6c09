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


def started(model: Path, editor: str, out: Path, steps: int = 12) -> subprocess.Popen[bytes]:
    settings = (*SETTINGS[editor], f"steps={steps}", "batch=2", "held_out=4", "every=2", "keep=1")
    command = [sys.executable, "-m", "errata", "prepare", str(model), "--editor", editor,
               "--benchmark", "microworld:vqa", "--limit", "24", "--out", str(out)]  # fmt: skip
    command += [word for s in settings for word in ("--set", s)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finished(run: subprocess.Popen[bytes]) -> str:
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err.decode()
    assert b"training" in err  # plain lines where there is no terminal
    return out.decode()


@pytest.mark.slow
@pytest.mark.parametrize("editor", sorted(SETTINGS))
def test_killed_and_repeated_is_the_same_state(editor: str, model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "written to" in finished(started(model, editor, whole))
    run = started(model, editor, broken)
    point = broken / "training.safetensors"
    deadline = time.monotonic() + 120
    while not point.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert point.exists() and not (broken / "state.json").exists()
    finished(started(model, editor, broken))
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert {f.name for f in broken.iterdir()} == {*FILES, "timing.json"}
    card = (whole / "README.md").read_text()
    assert "| step |" in card and "| 12 |" in card
    account = json.loads((whole / "state.json").read_text())["meta"]["training"]
    assert account["steps"] == 12 and len(account["curve"]) == 7


def test_another_command_does_not_take_the_checkpoint(model: Path, tmp_path: Path) -> None:
    run = started(model, "mend", tmp_path)
    while not (tmp_path / "training.safetensors").exists() and run.poll() is None:
        time.sleep(0.002)
    run.kill()
    run.communicate()
    other = started(model, "mend", tmp_path, steps=13)
    _, err = other.communicate(timeout=200)
    assert other.returncode == 2 and b"unfinished training with other settings" in err
