"""A training that is killed and repeated, or spread over processes, ends in the same state."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from errata.cli import main
from errata.core import registry
from errata.training.trained_editor import TrainedEditor
from tests import tiny
from tests.e2e.test_mmedit import make
from tests.fast import FAST

FILES = ("state.json", "state.safetensors", "README.md")
LOOP = {"steps": 12, "batch_size": 2, "held_out": 4, "eval_steps": 2, "save_steps": 1}
TRAINED = [
    n for n in registry.names("editors") if issubclass(registry.load("editors", n), TrainedEditor)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backbone = tiny.llava()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty cases on disk, two of them kept for eval: the bundled world takes longer to make."""
    root = tmp_path_factory.mktemp("data")
    make(root, 30)
    rows = json.loads((root / "vqa_train.json").read_text())
    (root / "vqa_eval.json").write_text(json.dumps(rows[:2]))
    return root


def command(model: Path, data: Path, editor: str, out: Path, **more: int) -> list[str]:
    settings = [f"{k}={json.dumps(v)}" for k, v in {**FAST[editor], **LOOP, **more}.items()]
    words = ["prepare", str(model), "--editor", editor, "--benchmark", "mmedit:vqa",
             "--root", str(data), "--limit", "12", "--out", str(out)]  # fmt: skip
    return words + [word for s in settings for word in ("--set", s)]


def finished(
    model: Path,
    data: Path,
    editor: str,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    **more: int,
) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(command(model, data, editor, out, **more))
    said = capsys.readouterr()
    assert not exit_.value.code, said.err
    assert f"{editor}: training 12/12" in said.err  # plain lines where there is no terminal
    return said.out


@pytest.mark.slow
@pytest.mark.parametrize("editor", TRAINED)
def test_killed_and_repeated_is_the_same_state(
    editor: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    child = os.fork()
    if child == 0:
        try:
            main(command(model, data, editor, broken))
        finally:
            os._exit(1)
    point = broken / "training.safetensors"
    while not point.exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert point.exists() and not (broken / "state.json").exists()
    finished(model, data, editor, broken, capsys)
    assert "written to" in finished(model, data, editor, whole, capsys)
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert {f.name for f in broken.iterdir()} == {*FILES, "timing.json"}
    card = (whole / "README.md").read_text()
    assert "| step |" in card and "| 12 |" in card
    account = json.loads((whole / "state.json").read_text())["meta"]["training"]
    assert account["steps"] == 12 and len(account["curve"]) == 7


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their gradients are averaged, their losses are one curve, and one of them writes."""
    two, one = tmp_path / "two", tmp_path / "one"
    ranks = [_rank(n, tmp_path, command(model, data, "dualedit", two)) for n in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    printed = "".join((tmp_path / f"rank{n}").read_text() for n in range(2))
    assert codes == [0, 0], printed
    assert printed.count("written to") == 1
    finished(model, data, "dualedit", one, capsys, gradient_accumulation_steps=2)
    assert {f.name for f in two.iterdir()} == {*FILES, "timing.json"}
    ours, theirs = (load_file(str(f / "state.safetensors")) for f in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-6, rtol=1e-5)
    accounts = [json.loads((f / "state.json").read_text())["meta"]["training"] for f in (one, two)]
    assert accounts[0]["epochs"] == accounts[1]["epochs"]
    for a, b in zip(*(account["curve"] for account in accounts), strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=1e-4)
        assert b["held_out"] == pytest.approx(a["held_out"], rel=1e-4)


def _rank(rank: int, folder: Path, words: list[str]) -> int:
    """Forks process `rank` of two, set up as `accelerate launch --multi_gpu` does; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with open(folder / f"rank{rank}", "w") as sys.stdout:
        sys.stderr = sys.stdout
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(20000 + os.getppid() % 30000),
        )  # fmt: skip
        try:
            AcceleratorState._reset_state(reset_partial_state=True)
            main(words)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
