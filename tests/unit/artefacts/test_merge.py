"""Patches in the weights of a checkpoint: plain transformers answers the same, files stay whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import errata
from errata.artefacts import merge as merging
from errata.backbones import outline
from errata.core.errors import (
    BadBackbone,
    BadOutput,
    BadPatch,
    DiskFull,
    FingerprintMismatch,
    Notice,
    UserError,
)
from errata.core.patch import Header
from errata.patches.delta import Delta
from tests import tiny
from tests.leaving import apart, asked, delta

SITES = ("text.1.mlp.down", "text.3.attn.q", "vision.0.attn.q", "bridge.linear_1")


def stored(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """The tiny LLaVA as an ordinary checkpoint, in several files if asked."""
    model, processor = tiny.llava_parts()
    model.to(dtype).save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("base") / "model", max_shard_size="60KB")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Any:
    return errata.load(folder)


def shards(folder: Path) -> list[merging.Shard]:
    return merging.shards_of(outline(folder))


def plain(folder: Path, backbone: Any) -> Any:
    """Logits of plain transformers, without a hook of errata."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    batch = backbone.encode(
        [errata.Prompt.of("What is the colour?", os.fspath(PICTURES[0])), errata.Prompt.of("It?")]
    )
    with torch.no_grad():
        one = model.eval()(**batch.inputs).logits[:, -1].float()
    with torch.no_grad():
        return one, backbone.model(**batch.inputs).logits[:, -1].float()


PICTURES: list[str] = []


@pytest.fixture(autouse=True)
def _pictures(pictures: list[str]) -> None:
    PICTURES[:] = pictures


def test_plain_transformers_gives_the_same_answers(
    folder: Path, backbone: Any, tmp_path: Path
) -> None:
    """A stack of three, text and image; several files, whose keys are not the model's names."""
    assert len(shards(folder)) > 2
    assert "language_model.model.layers.0.mlp.down_proj.weight" in {
        t.key for s in shards(folder) for t in s.tensors()
    }
    patches = [
        delta(backbone, SITES, seed=1),
        delta(backbone, SITES[:1], rank=None, seed=2),
        delta(backbone, ["text.0.attn.o"], rank=40, seed=3),
    ]
    made = errata.merge_patches(folder, patches, tmp_path / "merged")
    assert len(made.tensors) == 5
    assert made.loss < 1e-6
    with backbone.applied(*patches):
        one, wanted = plain(tmp_path / "merged", backbone)
    assert apart(wanted, plain(folder, backbone)[0]) > 0.1
    assert apart(one, wanted) <= 1e-5
    assert apart(asked(errata.load(tmp_path / "merged")), asked(backbone, *patches)) <= 1e-5
    assert {f.name for f in folder.iterdir()} == {
        f.name for f in (tmp_path / "merged").iterdir()
    } - {"README.md", merging.RECORD}
    index = json.loads((tmp_path / "merged" / merging.INDEX).read_text())
    assert index == json.loads((folder / merging.INDEX).read_text()) | {
        "metadata": {"total_size": index["metadata"]["total_size"]}
    }


def test_all_other_tensors_are_the_same_bytes(folder: Path, backbone: Any, tmp_path: Path) -> None:
    errata.merge_patches(folder, delta(backbone, SITES[:1]), tmp_path / "m")
    changed = []
    for shard in shards(folder):
        before, after = load_file(shard.path), load_file(tmp_path / "m" / shard.name)
        assert list(before) == list(after)
        changed += [k for k in before if not torch.equal(before[k], after[k])]
        with safe_open(tmp_path / "m" / shard.name, "pt") as f:
            assert f.metadata() == {"format": "pt"}
    assert changed == ["language_model.model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    source = stored(tmp_path / "base", dtype)
    bb = errata.load(source)
    parts = [delta(bb, SITES[:2], seed=s) for s in range(3)]
    made = errata.merge_patches(source, parts, tmp_path / "m")
    lost = total = 0.0
    for t in made.tensors:
        before = load_file(source / "model.safetensors")[t.key].double()
        after = load_file(tmp_path / "m" / "model.safetensors")[t.key]
        change = sum(p.part(t.site)["B"].double() @ p.part(t.site)["A"].double() for p in parts)
        assert after.dtype == dtype
        assert torch.equal(after, (before + change).to(dtype))
        error = float((after.double() - before - change).norm())
        assert t.loss == pytest.approx(error / float(change.norm()), rel=1e-6)
        lost, total = lost + error**2, total + float(change.square().sum())
    assert made.loss == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert made.worst.loss == max(t.loss for t in made.tensors) > 1e-4
    with bb.applied(*parts):
        one, wanted = plain(tmp_path / "m", bb)
    assert torch.equal(one.argmax(-1), wanted.argmax(-1))
    assert apart(one, wanted) < 0.15 * float(wanted.std())


def test_a_bin_checkpoint_becomes_safetensors(folder: Path, backbone: Any, tmp_path: Path) -> None:
    source = tmp_path / "bin"
    source.mkdir()
    weight_map = {}
    for shard in shards(folder):
        name = shard.name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        tensors = load_file(shard.path)
        torch.save(tensors, source / name)
        weight_map |= dict.fromkeys(tensors, name)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file in folder.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, source)
    patch = delta(backbone, SITES[:2])
    errata.merge_patches(source, patch, tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.bin*"))
    assert apart(asked(errata.load(tmp_path / "m")), asked(backbone, patch)) <= 1e-5


def test_a_bias_is_added_where_there_is_one(folder: Path, backbone: Any, tmp_path: Path) -> None:
    patch = delta(backbone, ["bridge.linear_1"], bias=True)
    made = errata.merge_patches(folder, patch, tmp_path / "m")
    assert len(made.tensors) == 2
    with backbone.applied(patch):
        one, wanted = plain(tmp_path / "m", backbone)
    assert apart(one, wanted) <= 1e-5
    with pytest.raises(BadPatch, match=r"adds a bias at text.1.mlp.down, and that module"):
        errata.merge_patches(folder, delta(backbone, SITES[:1], bias=True), tmp_path / "n")


def test_an_outline_knows_the_fingerprint_without_the_weights(folder: Path, backbone: Any) -> None:
    made = outline(folder)
    assert {p.device.type for p in made.model.parameters()} == {"meta"}
    assert made.identity.fingerprint() == backbone.fingerprint()
    assert made.identity.identified_by(backbone.former_fingerprint())
    assert not made.identity.identified_by("0" * 64)
    names = {id(m): path for path, m in made.model.named_modules()}
    assert {s.name: names[id(s.first)] for s in made.sites.values()} == backbone.site_paths


def test_a_patch_of_another_model_is_refused(folder: Path, backbone: Any, tmp_path: Path) -> None:
    other = delta(backbone, SITES[:1]).with_header(
        Header("hand", backbone="other", fingerprint="0" * 64), []
    )
    with pytest.raises(FingerprintMismatch, match="was made for other"):
        errata.merge_patches(folder, other, tmp_path / "m")
    with pytest.raises(FingerprintMismatch, match="two models"):
        errata.merge_patches(folder, [delta(backbone, SITES[:1]), other], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_weights_that_are_joined_while_loading_are_refused(
    folder: Path, backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule of transformers that makes one tensor of two, and a key that is not there."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Concatenate, WeightConverter

    usual = conversion_mapping.get_model_conversion_mapping

    def joined(model: Any, *a: Any, **k: Any) -> Any:
        rule = WeightConverter(
            source_patterns=["mlp.first.weight", "mlp.second.weight"],
            target_patterns="mlp.down_proj.weight",
            operations=[Concatenate(dim=0)],
        )
        return [*usual(model, *a, **k), rule]

    source = tmp_path / "split"
    shutil.copytree(folder, source)
    key = "language_model.model.layers.1.mlp.down_proj.weight"
    file = next(s.path for s in shards(source) if key in {t.key for t in s.tensors()})
    tensors = load_file(file)
    first, second = tensors.pop(key).chunk(2)
    base = key.removesuffix("down_proj.weight")
    save_file(
        {**tensors, f"{base}first.weight": first.clone(), f"{base}second.weight": second.clone()},
        file,
    )
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", joined)
    patch = delta(backbone, SITES[:1])
    with pytest.raises(BadBackbone, match=r"has no weight of its own .* joined or split"):
        errata.merge_patches(source, patch, tmp_path / "m")
    other = delta(backbone, SITES[1:2])  # the patch's own weight is stored as it is
    with pytest.warns(Notice, match="cannot be told from its files"):
        errata.merge_patches(source, other, tmp_path / "n")
    monkeypatch.undo()
    with pytest.raises(BadBackbone, match=r"has no weight of its own .* stored in parts"):
        errata.merge_patches(source, patch, tmp_path / "m")


def test_folders_are_refused_before_anything_is_written(
    folder: Path, backbone: Any, tmp_path: Path
) -> None:
    patch = delta(backbone, SITES[:1])

    def refused(error: type[UserError], words: str, out: Path, source: Path = folder) -> None:
        with pytest.raises(error, match=words):
            errata.merge_patches(source, patch, out, force=True)

    before = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
    refused(BadOutput, "has not written it", folder)
    refused(BadOutput, "is the folder of the model itself, or lies in it", folder / "inside")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    refused(BadOutput, "has not written it", tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == before
    quantised = tmp_path / "quantised"
    shutil.copytree(folder, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    refused(BadBackbone, "is quantised", tmp_path / "m", quantised)
    for file in (quantised).glob("*.safetensors*"):
        file.unlink()
    (quantised / "config.json").write_text((folder / "config.json").read_text())
    refused(BadBackbone, "has no weight files", tmp_path / "m", quantised)
    assert not (tmp_path / "m").exists()


def test_a_finished_model_is_replaced_only_with_force(
    folder: Path, backbone: Any, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    errata.merge_patches(folder, delta(backbone, SITES[:1]), out)
    with pytest.raises(BadOutput, match=r"holds a merged model. Give --force"):
        errata.merge_patches(folder, delta(backbone, SITES[1:2]), out)
    second = delta(backbone, SITES[1:2])
    errata.merge_patches(folder, second, out, force=True)
    assert apart(asked(errata.load(out)), asked(backbone, second)) <= 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadOutput, match=r"also holds notes.txt, which errata has not written"):
        errata.merge_patches(folder, second, out, force=True)
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    with pytest.raises(BadOutput, match="errata patch merge has not written it"):
        errata.merge_patches(folder, second, own, force=True)


def test_numbers_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    source = stored(tmp_path / "base", torch.float16)
    huge = torch.full((32, 64), 1e6)
    with pytest.raises(BadPatch, match="becomes too large for F16"):
        errata.merge_patches(source, Delta({SITES[0]: {"dense": huge}}), tmp_path / "m")
    with pytest.raises(BadPatch, match="it is no change of weights alone"):
        rows = Delta({SITES[0]: {"dense": huge[None]}}, rows=1)
        errata.merge_patches(source, rows, tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_a_full_disk_leaves_nothing_behind(
    folder: Path, backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = delta(backbone, SITES[:1])
    usual = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usual._replace(free=10))
    with pytest.raises(DiskFull, match="has room for"):
        errata.merge_patches(folder, patch, tmp_path / "m")
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="No space left"):
        errata.merge_patches(folder, patch, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_merge_leaves_no_model_and_the_next_one_cleans_up(
    folder: Path, backbone: Any, tmp_path: Path
) -> None:
    errata.save_patch(delta(backbone, SITES[:1]), tmp_path / "patch")
    code = """
        import sys, time, errata
        from errata.artefacts import merge
        merge._copy_rest = lambda *a: (print("written", flush=True), time.sleep(60))
        errata.merge_patches(sys.argv[1], errata.load_patch(sys.argv[2]), sys.argv[3])
    """
    process = run(code, folder, tmp_path / "patch", tmp_path / "m")
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "m").exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".m.")]
    errata.merge_patches(folder, errata.load_patch(tmp_path / "patch"), tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "patch"]


def test_memory_stays_below_the_largest_file(tmp_path: Path) -> None:
    """Files of 60 MB: merging needs less than 1.3 times one of them, fingerprint included."""
    from transformers import LlavaForConditionalGeneration

    model, processor = tiny.llava_parts()
    config = model.config
    config.text_config.intermediate_size = 80_000
    config.text_config.hidden_size = 64
    big = LlavaForConditionalGeneration(config)
    big.save_pretrained(tmp_path / "big", max_shard_size="65MB")
    processor.save_pretrained(tmp_path / "big")
    sizes = [s.path.stat().st_size for s in shards(tmp_path / "big")]
    assert len(sizes) >= 3 and max(sizes) > 40e6
    into, out = 80_000, 64
    rng = torch.Generator().manual_seed(0)
    parts = {"A": torch.randn(4, into, generator=rng), "B": torch.randn(out, 4, generator=rng)}
    name = outline(tmp_path / "big")
    head = Header("hand", backbone=name.name, fingerprint=name.identity.fingerprint())
    patch = Delta({"text.0.mlp.down": parts}).requires_grad_(False).with_header(head, [])
    errata.save_patch(patch, tmp_path / "patch")
    code = """
        import resource, sys, errata, errata.artefacts.merge, errata.backbones
        source, patch, out = sys.argv[1:]
        loaded = errata.load_patch(patch)
        errata.backbones.outline(source)  # what is imported and cached is not the merge's
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        errata.merge_patches(source, loaded, out)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    process = run(code, tmp_path / "big", tmp_path / "patch", tmp_path / "m")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert int(said.split()[-1]) * 1024 < 1.3 * max(sizes)
