"""The bundled model through whole runs: killed and resumed to equal bytes, for every editor."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from errata.backbones import load
from errata.benchmarks.microworld import Microworld
from errata.core import registry
from errata.core.backbone import Backbone
from errata.core.benchmark import BenchmarkSpec
from errata.core.editor import Editor
from errata.evaluation.bench import bench
from errata.training.loop import TrainedEditor

SPEC = "microworld:vqa@dev"


@pytest.fixture(scope="module")
def micro() -> Backbone:
    torch.set_num_threads(1)
    return load("micro-vlm")


def run(backbone: Backbone, out: Path, editor: str, protocol: str, limit: int = 12) -> Path:
    cls = registry.load("editors", editor)
    made: Editor = cls(**({"encoder": "backbone"} if editor == "ike" else {}))
    state = None
    if issubclass(cls, TrainedEditor):
        made = cls(steps=2, batch=2, held_out=0).for_backbone(backbone)
        cases = Microworld().load(BenchmarkSpec.parse("microworld:vqa@train")).cases
        state = made.prepare(backbone, cases[:8])
    return bench(backbone, made, SPEC, protocol, out, limit=limit, rows=4, state=state)


def test_killed_twice_and_resumed(micro: Backbone, tmp_path: Path) -> None:
    started = time.monotonic()
    whole = run(micro, tmp_path / "whole", "ft_l", "sequential:3")
    length = time.monotonic() - started
    rng = random.Random(0)
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                run(micro, tmp_path / "killed", "ft_l", "sequential:3")
            finally:
                os._exit(0)
        time.sleep(length * rng.uniform(0.2, 0.7))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    again = run(micro, tmp_path / "killed", "ft_l", "sequential:3")
    for name in ("scores.json", "answers.jsonl", "plan.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("editor", registry.names("editors"))
def test_every_editor_runs_and_scores_all_paper_metrics(
    micro: Backbone, tmp_path: Path, editor: str
) -> None:
    if lacking := registry.load("editors", editor).requires - micro.capabilities:
        pytest.skip(f"needs a model that can {', '.join(sorted(lacking))}")
    for protocol in ("one_step", "sequential:3"):
        out = run(micro, tmp_path / protocol.split(":")[0], editor, protocol, limit=6)
        scores = json.loads((out / "scores.json").read_text())
        for kind in ("reliability", "t_generality", "m_generality", "t_locality", "m_locality"):
            for scorer in ("exact", "token"):
                entry = scores["metrics"][f"{kind}.{scorer}"]
                assert entry["n"] == 6 and 0 <= entry["value"] <= 1
        timing = json.loads((out / "timing.json").read_text())
        assert timing["phases"]["edit"]["count"] == 6


def test_rows_and_limits_do_not_change_the_plan(micro: Backbone, tmp_path: Path) -> None:
    """The first cases of a longer plan are the shorter plan."""
    short = run(micro, tmp_path / "short", "ft_l", "one_step", limit=4)
    long = run(micro, tmp_path / "long", "ft_l", "one_step", limit=8)
    ids = [
        [c["id"] for c in json.loads((r / "plan.json").read_text())["cases"]] for r in (short, long)
    ]
    assert ids[0] == ids[1][:4]
