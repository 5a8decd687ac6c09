"""A run that is killed at any moment and started again ends with the bytes of a whole run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.benchmarks.microworld import Microworld
from errata.core.errors import BadRun
from errata.core.measure.benchmark import BenchmarkSpec
from errata.evaluation.bench import bench
from tests.short import short_microworld
from tests.stub import NotesEditor, Stub, knowing

SPEC = "microworld:vqa@dev"
LIMIT = 24


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    """The benchmark holds 60 cases here, so that most of a run is what it writes."""
    spec = BenchmarkSpec.parse(SPEC)
    with short_microworld(dev=60):
        yield knowing(Microworld().load(spec).cases, Microworld().panel(spec))


def run(stub: Stub, out: Path, protocol: str = "sequential:3") -> Path:
    return bench(stub, NotesEditor(), SPEC, protocol, out, limit=LIMIT, rows=2)


def interrupted(stub: Stub, out: Path, at: int, protocol: str) -> bool:
    """Runs in a fork and kills it once it has written `at` bytes. True if it was still running."""
    child = os.fork()
    if child == 0:
        try:
            stub.delay = 0.002
            run(stub, out, protocol)
        finally:
            os._exit(0)
    while sum(f.stat().st_size for f in _files(out)) < at:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _files(out: Path) -> list[Path]:
    """The files of the run, without temporary ones, which may vanish at any time."""
    try:
        return [f for f in out.iterdir() if not f.name.startswith(".")]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("protocol", ["one_step", "sequential:3"])
def test_killed_at_ten_random_moments_each(stub: Stub, tmp_path: Path, protocol: str) -> None:
    whole = run(stub, tmp_path / "whole", protocol)
    size = sum(f.stat().st_size for f in _files(whole))
    rng, kills = random.Random(protocol), 0
    for attempt in range(10):
        out = tmp_path / f"k{attempt}"
        for _ in range(rng.choice([1, 1, 2])):
            kills += interrupted(stub, out, int(rng.uniform(0.0, 0.98) * size), protocol)
        run(stub, out, protocol)
        for name in ("scores.json", "answers.jsonl", "plan.json", "before.jsonl"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (attempt, name)
        assert not [f.name for f in out.iterdir() if f.name.startswith(".")]
    assert kills >= 10


def test_a_torn_line_is_cut_off(stub: Stub, tmp_path: Path) -> None:
    out = run(stub, tmp_path / "a")
    scores = (out / "scores.json").read_bytes()
    lines = (out / "done.jsonl").read_text().splitlines(keepends=True)
    (out / "done.jsonl").write_text("".join(lines[:1]) + lines[1][:25])
    with open(out / "answers.jsonl", "a") as f:
        f.write('{"case": "torn')
    (out / "scores.json").unlink()
    run(stub, out)
    assert (out / "scores.json").read_bytes() == scores


def test_another_run_is_not_overwritten(stub: Stub, tmp_path: Path) -> None:
    run(stub, tmp_path / "a")
    with pytest.raises(BadRun, match="another run"):
        bench(
            stub, NotesEditor(), SPEC, "sequential:3", tmp_path / "a", limit=LIMIT, rows=2, seed=1
        )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious.txt").write_text("mine")
    with pytest.raises(BadRun, match="not empty"):
        run(stub, tmp_path / "b")
    assert (tmp_path / "b" / "precious.txt").read_text() == "mine"
