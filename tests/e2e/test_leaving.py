"""A patch of micro-vlm leaves errata: the same answers in peft, transformers, merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.benchmarks.microworld import Microworld
from errata.cli import main
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.model.backbone import Backbone
from errata.core.types import Prompt
from tests.leaving import with_load_adapter, with_peft
from tests.short import short_microworld

pytestmark = pytest.mark.trained


@pytest.fixture(scope="module")
def micro() -> Iterator[Backbone]:
    torch.set_num_threads(1)
    with short_microworld(train=4, dev=6):
        yield errata.load("micro-vlm")


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(w) for w in words])
    assert end.value.code == 0, words


def answers(model: Any, backbone: Backbone, prompts: list[Prompt]) -> list[str]:
    """Greedy answers of a plain model, one prompt at a time."""
    said = []
    for prompt in prompts:
        inputs = backbone.encode([prompt]).inputs
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said.append(backbone.decode(ids[0, inputs["input_ids"].shape[1] :].tolist()))
    return said


def test_the_same_answers_everywhere(
    micro: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText

    cases = Microworld().load(BenchmarkSpec.parse("microworld:vqa@dev")).cases[:3]
    edits = [case.edit for case in cases]
    low = errata.editor("lora").edit(micro, edits[:2])
    dense = errata.editor("ft_l").edit(micro, edits[2:])
    for name, result in (("low", low), ("dense", dense)):
        errata.save_patch(result.patch, tmp_path / name)
    both = [tmp_path / "low", tmp_path / "dense"]
    prompts = [p.prompt for case in cases for p in case.probes]
    before = answers(micro.model, micro, prompts)
    with micro.applied(low.patch, dense.patch):
        wanted = answers(micro.model, micro, prompts)
    assert wanted != before
    assert [wanted[prompts.index(e.prompt)] for e in edits] == [e.target for e in edits]

    run("patch", "export-peft", *both, "--out", tmp_path / "adapter")
    model, _ = with_peft(micro, tmp_path / "adapter")
    assert answers(model, micro, prompts) == wanted
    with model.disable_adapter():
        assert answers(model, micro, prompts) == before
    model, _ = with_load_adapter(micro, tmp_path / "adapter")
    assert answers(model, micro, prompts) == wanted

    run("patch", "merge", "micro-vlm", *both, "--out", tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="float32")
    assert answers(merged.eval(), micro, prompts) == wanted

    run("patch", "squash", *both, "--out", tmp_path / "joint")
    run("patch", "verify", "micro-vlm", tmp_path / "joint")
    run("patch", "import-peft", tmp_path / "adapter", "micro-vlm", "--out", tmp_path / "again")
    with micro.applied(errata.load_patch(tmp_path / "again", micro)):
        assert answers(micro.model, micro, prompts) == wanted
    said = capsys.readouterr().out
    assert "3 of 3 edited questions are answered with their target" in said
    assert "rounding lost" in said


def test_commands_fail_in_one_line(
    micro: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Microworld().load(BenchmarkSpec.parse("microworld:vqa@dev")).cases[0]
    memory = errata.editor("ike", encoder="backbone").edit(micro, [case.edit])
    errata.save_patch(memory.patch, tmp_path / "memory")

    def fails(words: str, *command: object) -> None:
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in command])
        assert end.value.code == 2, command
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said

    out = ("--out", tmp_path / "out")
    fails("no change of weights", "patch", "export-peft", tmp_path / "memory", *out)
    fails("no change of weights", "patch", "merge", "micro-vlm", tmp_path / "memory", *out)
    fails("no change of weights", "patch", "squash", tmp_path / "memory", *out)
    fails("is no adapter", "patch", "import-peft", tmp_path / "memory", "micro-vlm", *out)
    fails("has no patch.json", "patch", "squash", tmp_path, *out)
    taken = ("--out", tmp_path / "memory")
    fails("holds a patch already", "patch", "squash", tmp_path / "memory", *taken)
    fails("holds a patch of errata", "patch", "export-peft", tmp_path / "memory", *taken)
    fails("has not written it", "patch", "merge", "micro-vlm", tmp_path / "memory", *taken)
    assert not (tmp_path / "out").exists()
