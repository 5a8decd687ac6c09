"""Runs and states made by Ray workers: the bytes of one process, also if a worker is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.core import registry
from errata.core.errors import BadRun, BadSpec
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.state import PrepareContext
from errata.evaluation.distribute import ray_workers
from errata.evaluation.distribute.ray_workers import RayWorkers
from tests.command import command_of

ray = pytest.importorskip("ray", reason="needs the extra: pip install 'errata[ray]'")

SAME = ("plan.json", "before.jsonl", "answers.jsonl", "scores.json")
LOAD = partial(errata.load, "micro-vlm")


def _run(out: Path, workers: RayWorkers | None = None, **passed) -> Path:
    return errata.bench(
        LOAD(), errata.editor("ft_l", steps=3), "microworld:vqa", "one_step", out,
        limit=12, rows=1, workers=workers, **passed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("whole") / "run", keep_patches=True)


@pytest.fixture(scope="module")
def cluster():
    assert ray_workers._connect(ray, "local", 2)
    yield
    ray.shutdown()


@pytest.mark.timeout(300)
def test_workers_equal_one_process_also_if_one_is_killed(whole, cluster, tmp_path):
    """SIGKILL to a worker in the middle; its unit is run by another one."""
    out, pids, killed = tmp_path / "run", tmp_path / "pids", list[int]()
    pids.mkdir()

    def load() -> errata.Backbone:
        (pids / str(os.getpid())).touch()
        return errata.load("micro-vlm")

    def kill() -> None:
        deadline = time.time() + 200
        while time.time() < deadline and not (out / "done.jsonl").exists():
            time.sleep(0.05)
        killed.extend(int(p.name) for p in [*pids.iterdir()][:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    _run(out, RayWorkers(load, count=2), keep_patches=True)
    thread.join()
    assert killed and len([*pids.iterdir()]) >= 2
    for name in SAME:
        assert (whole / name).read_bytes() == (out / name).read_bytes(), name
    patches = sorted(p.name for p in (whole / "patches").iterdir())
    assert patches == sorted(p.name for p in (out / "patches").iterdir())


@pytest.mark.timeout(300)
def test_states_equal_those_of_one_process_also_if_a_worker_is_killed(cluster, tmp_path):
    """Moments and a memory, of chunks; SIGKILL to a worker after the first chunk."""
    killed = list[int]()

    def load() -> errata.Backbone:
        (tmp_path / str(os.getpid())).touch()
        return errata.load("micro-vlm")

    class Killing:
        def map(self, task: Any, chunks: Any) -> Iterator[Any]:
            for done in pool.map(task, chunks):
                if not killed:
                    killed.append(int(sorted(tmp_path.iterdir())[0].name))
                    os.kill(killed[0], signal.SIGKILL)
                yield done

    bb = LOAD()
    spec = BenchmarkSpec.parse("microworld:vqa@dev")
    cases = registry.load("benchmarks", "microworld")().load(spec, root=None, seed=0).cases[:70]
    editors = [errata.editor("memit", texts=300), errata.editor("unike", epochs=1, corpus=2)]
    one = [e.prepare(bb, cases) for e in editors]
    with RayWorkers(load, count=2).pool(bb.fingerprint()) as pool:
        two = [e.prepare(bb, cases, work=PrepareContext(workers=Killing())) for e in editors]
    assert [s.digest() for s in one] == [s.digest() for s in two]
    assert killed and len([*tmp_path.iterdir()]) == 3, "another worker took its place"


@pytest.mark.timeout(300)
def test_statistics_by_workers_have_the_same_files(cluster, tmp_path, capsys):
    errata, corpus = command_of(capsys), tmp_path / "texts.txt"
    corpus.write_text("".join(f"the number {n} is before {n + 1}\n" for n in range(300)))
    stats = ("stats", "micro-vlm", "--corpus", corpus, "--layers", "1", "--tokens", "1024")
    one = errata(*stats, "--out", tmp_path / "one")
    two = errata(*stats, "--out", tmp_path / "two", "--ray", "local", "--workers", "1")
    assert (one.code, two.code) == (0, 0), two.err
    for name in ("state.safetensors", "state.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.timeout(300)
def test_a_worker_with_another_model_is_refused(cluster, tmp_path):
    with pytest.raises(BadRun, match="a worker loaded another model"):
        _run(tmp_path / "run", RayWorkers(partial(errata.load, "micro-umm"), count=1))


def test_protocols_that_draw_are_refused(tmp_path):
    with pytest.raises(BadSpec, match="Use --shard"):
        errata.bench(
            errata.load("micro-umm"), errata.editor("ft_l"), "unike_umm", "direct:2x1",
            tmp_path / "b", workers=RayWorkers(LOAD),
        )  # fmt: skip
