"""What goes wrong in practice: each is one clear line, loses nothing and is never silent."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from errata.core import registry
from errata.core.errors import BadBackbone, BadEdit, BadSpec, DiskFull, NotFinite, TooLong
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case, Edit, Image, Probe, Prompt
from errata.evaluation import plan
from errata.evaluation.bench import bench
from errata.networks.embedder import choose, embed
from tests import tiny
from tests.stub import NotesEditor, Stub, knowing

SPEC = "microworld:vqa@dev"


@pytest.fixture(scope="module")
def stub() -> Stub:
    spec = BenchmarkSpec.parse(SPEC)
    benchmark = registry.load("benchmarks", "microworld")()
    return knowing(benchmark.load(spec).cases, benchmark.panel(spec))


def run(stub: Stub, out: Path) -> Path:
    return bench(stub, NotesEditor(), SPEC, "one_step", out, limit=24, rows=4)


def test_a_full_disk_keeps_finished_work(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(stub, tmp_path / "whole")
    real, calls = os.fsync, 0

    def full_after_a_while(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises(DiskFull, match=r"cannot write .*No space left"):
        run(stub, tmp_path / "full")
    assert not [f.name for f in (tmp_path / "full").iterdir() if f.name.startswith(".")]
    monkeypatch.setattr(os, "fsync", real)
    again = run(stub, tmp_path / "full")
    assert (again / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()


def test_a_damaged_cache_is_not_used(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.cache, "load", lambda key: {"cases": [5]})
    monkeypatch.setattr(plan.cache, "store", lambda key, value: None)
    out = bench(stub, NotesEditor(), SPEC, "one_step", tmp_path, limit=1)
    assert (out / "scores.json").exists()


def case(target: str, image: str, probe_image: str) -> Case:
    prompt = Prompt.of("What is it?", image)
    return Case(
        "c",
        Edit(prompt, target, id="c"),
        (
            Probe("r", prompt, "reliability", reference=target),
            Probe("m", Prompt.of("What?", probe_image), "m_locality", reference="ring"),
        ),
    )


def test_unusable_rows_are_recorded(pictures: list[str], tmp_path: Path) -> None:
    backbone = tiny.shared("llava")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n not really")
    for bad, reason in (
        (case("red", str(tmp_path / "gone.png"), pictures[0]), "gone.png"),
        (case("red", str(broken), pictures[0]), "broken.png"),
        (case("", pictures[0], pictures[0]), "empty target"),
        (case("red " * 600, pictures[0], pictures[0]), "512"),
    ):
        kept, skips = plan._ready(backbone, bad)
        assert kept is None
        assert [s.id for s in skips] == ["c"] and reason in skips[0].reason
    kept, skips = plan._ready(backbone, case("red", pictures[0], str(tmp_path / "gone.png")))
    assert kept is not None and [p.id for p in kept.probes] == ["r"]
    assert [s.id for s in skips] == ["c/m"]


def test_a_loss_that_is_not_a_number(edits: list[Edit]) -> None:
    editor = registry.load("editors", "ft_l")(lr=1e38, steps=5)
    with pytest.raises(NotFinite, match=r"edit 'e0' became (nan|inf).*Lower the step size"):
        editor.edit(tiny.shared("llava"), edits[:1])
    assert not tiny.shared("llava").hooks.stack


def test_a_target_longer_than_the_context(edits: list[Edit]) -> None:
    editor = registry.load("editors", "ft_l")(steps=1)
    with pytest.raises(TooLong, match="takes 512"):
        editor.edit(tiny.shared("llava"), [replace(edits[0], target="red " * 600)])


def test_ft_v_needs_an_image() -> None:
    with pytest.raises(BadEdit, match="no image"):
        registry.load("editors", "ft_v")().edit(
            tiny.shared("llava"), [Edit(Prompt.of("Which?"), "red")]
        )


def test_a_layer_that_is_not_there(edits: list[Edit]) -> None:
    with pytest.raises(BadSpec, match="text blocks 0 to 3"):
        registry.load("editors", "ft_l")(layers=(7,)).edit(tiny.shared("llava"), edits[:1])


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    from errata.backbones import load

    with pytest.raises(BadBackbone, match="no-such-model"):
        load("no-such-model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadBackbone):
        load(str(tmp_path))


def test_an_image_that_changed_is_refused(pictures: list[str]) -> None:
    with pytest.raises(Exception, match="sha256"):
        tiny.llava().encode([Prompt((Image(pictures[0], "0" * 64), "What?"))])


def test_the_real_sentence_encoder_when_it_is_installed() -> None:
    if choose("auto") != "minilm":
        pytest.skip("the retrieval extra is not installed")
    vectors = embed(
        ["What colour is it?", "Which colour?", "a dog"], "minilm", tiny.shared("llava")
    )
    assert vectors.shape == (3, 384)
    near = vectors @ vectors.T
    assert torch.argsort(near[0], descending=True).tolist() == [0, 1, 2]
