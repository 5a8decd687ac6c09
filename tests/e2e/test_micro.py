"""Whole runs on the bundled model: every editor in two protocols; killed and resumed."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from errata.backbones import load
from errata.benchmarks.microworld import Microworld
from errata.core import registry
from errata.core.editor import Editor
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.evaluation.bench import bench
from errata.training.trained_editor import TrainedEditor
from tests.short import short_microworld

SPEC = "microworld:vqa@dev"
CASES = {"train": 16, "dev": 12}  # all of them are asked before a run, and searched by editors
LIMIT = 4  # the same in all runs, so that the answers of the unedited model are asked once


@pytest.fixture(scope="module")
def micro() -> Iterator[Backbone]:
    torch.set_num_threads(1)
    with short_microworld(**CASES):
        yield load("micro-vlm")


@functools.cache
def editor_and_state(name: str, backbone: Backbone) -> tuple[Editor, State | None]:
    """The editor with few steps; the state of two steps if it is one that must be trained."""
    cls = registry.load("editors", name)
    cases = Microworld().load(BenchmarkSpec.parse("microworld:vqa@train")).cases
    if not issubclass(cls, TrainedEditor):
        small = {"questions": 2, "pictures": 2, "pool": 4, "cases": 8}  # of a scope's state
        shorter = {"steps": 5, "encoder": "backbone", **small}.items()
        editor: Editor = cls(**{k: v for k, v in shorter if k in cls().summary["config"]})
        return editor, editor.prepare(backbone, cases) if editor.needs_state else None
    trained = cls(steps=2, batch=2, held_out=0).for_backbone(backbone)
    return trained, trained.prepare(backbone, cases)


def run(
    backbone: Backbone, out: Path, name: str, protocol: str, *, limit: int = LIMIT, rows: int = 3
) -> Path:
    editor, state = editor_and_state(name, backbone)
    return bench(backbone, editor, SPEC, protocol, out, limit=limit, rows=rows, state=state)


def test_killed_twice_and_resumed(micro: Backbone, tmp_path: Path) -> None:
    def sequences(out: Path) -> Path:
        return run(micro, out, "ft_l", "sequential:2", rows=1)

    whole, killed = sequences(tmp_path / "whole"), tmp_path / "killed"
    for written in ("manifest.json", "done.jsonl"):  # before the first unit, and before the second
        child = os.fork()
        if child == 0:
            try:
                sequences(killed)
            finally:
                os._exit(0)
        while not (killed / written).exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not (killed / "scores.json").exists()
    again = sequences(killed)
    for name in ("scores.json", "answers.jsonl", "plan.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.filterwarnings("ignore:editor 'pmet'.* is not written:errata.core.errors.Notice")
@pytest.mark.parametrize("editor", registry.names("editors"))
def test_every_editor_runs_and_scores_all_paper_metrics(
    micro: Backbone, tmp_path: Path, editor: str
) -> None:
    if lacking := registry.load("editors", editor).requires - micro.capabilities:
        pytest.skip(f"needs a model that can {', '.join(sorted(lacking))}")
    # single edits in batches of three and of one; two sequences of two edits in one batch
    for protocol in ("one_step", "sequential:2"):
        out = run(micro, tmp_path / protocol.split(":")[0], editor, protocol)
        scores = json.loads((out / "scores.json").read_text())
        for kind in ("reliability", "t_generality", "m_generality", "t_locality", "m_locality"):
            for scorer in ("exact", "token"):
                entry = scores["metrics"][f"{kind}.{scorer}"]
                assert entry["n"] == LIMIT and 0 <= entry["value"] <= 1
        timing = json.loads((out / "timing.json").read_text())
        assert timing["phases"]["edit"]["count"] == LIMIT


def test_a_limit_does_not_change_the_plan(micro: Backbone, tmp_path: Path) -> None:
    """The first cases of a longer plan are the shorter plan."""
    short = run(micro, tmp_path / "short", "ft_l", "one_step", limit=2)
    long = run(micro, tmp_path / "long", "ft_l", "one_step")
    ids = [
        [c["id"] for c in json.loads((r / "plan.json").read_text())["cases"]] for r in (short, long)
    ]
    assert ids[0] == ids[1][:2]
