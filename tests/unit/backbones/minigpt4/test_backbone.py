"""A converted MiniGPT-4: where an answer ends, subjects, editors, doctor, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.backbones._scoring import _Answer
from errata.backbones.minigpt4.convert import Published, convert
from errata.cli.doctor import examine
from errata.core.types import Image, Prompt
from errata.testing import class_checks
from tests import published
from tests.published import SMALL

CHECKS = [f for name, f in vars(class_checks).items() if name.startswith("holds_")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published.save_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def backbone(parts: Published, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(parts, out, vit_heads=SMALL.tower_heads, qformer_heads=SMALL.qformer_heads)
    return errata.load(out)


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_what_every_class_must_do(check, backbone, tmp_path: Path) -> None:
    check(backbone, tmp_path)


@pytest.mark.parametrize("editor", ["ft_l", "lora", "memit", "serac", "unike"])
def test_edits_are_made_saved_loaded_and_undone(editor, backbone, tmp_path: Path) -> None:
    class_checks.try_editor(editor, backbone, tmp_path)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["green", "##", "#"], "green"),
        (["▁green", "▁###"], "green"),
        (["▁green", "▁", "▁##", "#"], "green"),
        (["##", "#"], ""),
        (["C", "##"], None),
        (["C", "#", "▁##"], None),
        (["▁green", "▁ring"], None),
    ],
)
def test_an_answer_ends_at_the_sign(backbone, said: list[str], kept: str | None) -> None:
    answer = _Answer(backbone, 10, 1, backbone.before_end)
    for token in said:
        answer.add(backbone.tokenizer.convert_tokens_to_ids(token))
    assert answer.stopped is (True if kept is not None else None)
    assert kept is None or backbone.decode(answer.ids) == kept


def test_a_target_with_an_end_is_tokenised_as_published(backbone, pictures) -> None:
    prompts = [Prompt.of("Which colour?", pictures[0]), Prompt.of("Which shape?")]
    batch = backbone.encode(prompts, ["blue", "ring."], eos=True)
    for target, ids in zip(["blue", "ring."], batch.targets, strict=True):
        assert list(ids) == backbone.tokenizer(f"{target}###", add_special_tokens=False).input_ids
    plain = backbone.encode(prompts, ["blue", "ring."])
    assert [len(a) - len(b) for a, b in zip(batch.targets, plain.targets, strict=True)] == [2, 2]


@pytest.mark.parametrize("style", ["raw", "easyedit", "chat"])
def test_the_last_column_of_a_subject_counts_the_image(backbone, pictures, style) -> None:
    bb = type(backbone)(backbone.model, backbone.processor, style=style)
    image = Image.of(pictures[0])
    for segments in (
        (image, "What is the blue ring of it?"),
        ("What is the blue ring", image, "of the thing?"),
        ("The picture", image, "shows the blue ring"),
        ("What is the blue ring?",),
    ):
        prompt = Prompt(segments)
        column = bb.last_column(prompt, "blue ring")
        ids = bb.encode([prompt]).ids[0].tolist()
        assert bb.decode(ids[: column + 1]).endswith("blue ring")
        assert not bb.decode(ids[:column]).endswith("blue ring")
    backbone.model.vision_model.post_layernorm.eps = 1e-5


def test_doctor_compares_with_the_models_own_forward(backbone, pictures) -> None:
    facts = examine(backbone, pictures[0])
    assert facts["backbone"] == "minigpt4" and facts["own forward"]["equal"]
    assert facts["own forward"]["same tokens"] and facts["sample"]["of them image tokens"] == 5


def test_the_command(parts, backbone, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [sys.executable, "-m", "errata", "convert", "minigpt4"]
    given = [("vit", parts.vit), ("qformer", parts.qformer), ("checkpoint", parts.checkpoint)]
    files = [w for name, path in given for w in (f"--{name}", str(path))]
    more = ["--vit-heads", "3", "--qformer-heads", "2", "--out", str(out)]
    done = subprocess.run(
        [*command, *files, "--vicuna", str(parts.vicuna), *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "MiniGPT-4 with 3 + 3 + 4 blocks and 97,692 numbers in float32 written" in done.stdout
    assert errata.load(out).fingerprint() == backbone.fingerprint()
    wrong = [*command, *files, "--vicuna", str(parts.vit), *more]
    again = subprocess.run(wrong, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
