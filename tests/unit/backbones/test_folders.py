"""Folders that are no whole model: each ends in one line that says what is wrong."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.backbones import _folders
from errata.cli import main
from errata.core.errors import BadBackbone, BadImage, MissingExtra, UserError
from errata.core.types import Edit, Prompt
from errata.testing import tiny_models as tiny

JSONS = (
    *("config.json", "generation_config.json", "processor_config.json", "tokenizer.json"),
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    model, processor = tiny.llava_parts(layers=1)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    assert {f.name for f in path.iterdir()} == {*JSONS, "model.safetensors"}
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "m")
    return tmp_path / "m"


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        errata.load(path, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500 + 3 * len(str(path)) and line.endswith(".")
    return line


def answers(path: Path) -> None:
    """What may be missing is not needed."""
    bb = errata.load(path)
    errata.ask(bb, "Which?", cap=2)
    bb.encode([Prompt.of("Which?")], ["red"], eos=True)


# -- folders that are something else --------------------------------------------------------------


def _adapter(path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4}
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(b"")


def _broken_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text("[[")


def _gguf(path: Path) -> None:
    (path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def _pipeline(path: Path) -> None:
    (path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (path / "transformer").mkdir()


def _patch(path: Path) -> None:
    bb = tiny.shared("llava")
    made = errata.editor("ft_l", steps=1).edit(bb, Edit(Prompt.of("Which?"), "red"))
    errata.save_patch(made.patch, path)


def _state(path: Path) -> None:
    from errata.core.state import State

    State("mend", {}, {"a": torch.ones(1)}).save(path)


def _run(path: Path) -> None:
    (path / "manifest.json").write_text("{}")
    (path / "plan.json").write_text("{}")


def _analysis(path: Path) -> None:
    (path / "attention.json").write_text("{}")
    (path / "heads.svg").write_text("<svg/>")


def _weights_alone(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def _parent(path: Path) -> None:
    (path / "one").mkdir()
    (path / "one" / "config.json").write_text("{}")


def _nothing(path: Path) -> None:
    pass


KINDS: list[tuple[Callable[[Path], None], str]] = [
    (_adapter, "an adapter (LoRA) alone, without its model 'some/base'"),
    (_broken_adapter, "an adapter (LoRA) alone, without its model."),
    (_gguf, "weights in GGUF, the format of llama.cpp (model-Q4_K_M.gguf)"),
    (_pipeline, "a pipeline of diffusers"),
    (_patch, "a patch of errata"),
    (_state, "the state of an editor"),
    (_run, "a run of errata bench"),
    (_analysis, "an analysis of errata (attention)"),
    (_weights_alone, "weights without a config.json"),
    (_parent, "It holds models: one."),
    (_nothing, "has no config.json"),
]


@pytest.mark.parametrize(("make", "says"), KINDS, ids=[m.__name__.strip("_") for m, _ in KINDS])
def test_another_folder_is_named_as_what_it_is(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    make(tmp_path / "f")
    assert says in refused(tmp_path / "f")


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.txt", "m"])
def test_a_file_is_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    assert "GGUF" in refused(tmp_path / name) or "folder of the model" in refused(tmp_path / name)


# -- damaged folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", JSONS)
@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"5", b'"text"', b"{", b"\xff\xfe{}", b"[" * 100_000, b"{}"],
    ids=["empty", "null", "list", "number", "text", "cut", "not UTF-8", "deep", "no fields"],
)
def test_every_json_file_is_read_at_the_door(file: str, content: bytes, copied: Path) -> None:
    (copied / file).write_bytes(content)
    if content == b"{}" and file in ("generation_config.json", "tokenizer_config.json"):
        answers(copied)
    elif content == b"{}":
        refused(copied)
    else:
        assert str(copied / file) in refused(copied)


@pytest.mark.parametrize("file", [*JSONS, "model.safetensors"])
def test_a_missing_file_is_said(file: str, copied: Path) -> None:
    (copied / file).unlink()
    if file in ("generation_config.json", "tokenizer_config.json"):
        answers(copied)
    else:
        refused(copied)


def test_a_llava_without_its_processor_settings_is_told_what_is_missing(copied: Path) -> None:
    settings = json.loads((copied / "processor_config.json").read_text())
    (copied / "processor_config.json").unlink()
    (copied / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    line = refused(copied)
    assert "no patch_size" in line and "processor_config.json" in line
    bb = tiny.llava()
    bb.processor.patch_size = None
    with pytest.raises(BadBackbone, match="no patch_size"):
        errata.wrap(bb.model, bb.processor)


@pytest.mark.parametrize("part", [0, 4, 1000, -1])
def test_weights_that_are_cut_off_are_said(part: int, copied: Path) -> None:
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:part])
    assert "is no whole weight file" in refused(copied)


def test_shards_and_weights_that_are_missing_are_said(whole: Path, copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole / "model.safetensors")
    gone = sorted(tensors)[3]
    del tensors[gone]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert "lack weights of the model" in refused(copied)
    (copied / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no model-00001.safetensors" in refused(copied)
    (copied / "model.safetensors.index.json").write_text('{"weight_map": null}')
    assert "weight_map" in refused(copied)
    (copied / "model.safetensors.index.json").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"<html>not found</html>")
    assert "is no whole weight file" in refused(copied)


TEMPLATES = (
    "{{ 1 / 0 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{% raise %}",
    "{{ raise_exception('no') }}",
    "{{ 'nothing of the prompt' }}",
    "{{ messages[0]['content'] | upper }}",
    "{% include '/etc/passwd' %}",
    "",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_hostile_chat_template_is_refused_and_raw_works(template: str, copied: Path) -> None:
    (copied / "chat_template.jinja").write_text(template)
    if template:
        assert "template" in refused(copied) and "--style raw" in refused(copied)
    assert errata.load(copied, style="raw").style == "raw"


def test_seeded_damage_never_ends_in_another_error(whole: Path, tmp_path: Path) -> None:
    """Values of random fields are replaced; the model loads and answers, or one line is said."""
    rng = random.Random(13)
    values = (None, -1, 0, 10**6, "x", [], {}, True, 1e308, ["a"], {"a": None})
    seen: set[bool] = set()
    for turn in range(60):
        path = tmp_path / str(turn)
        shutil.copytree(whole, path)
        file = path / rng.choice(JSONS)
        data = json.loads(file.read_text())
        owner = data
        while True:
            key = rng.choice(sorted(owner) or ["new"])
            if not (isinstance(owner.get(key), dict) and owner[key] and rng.random() < 0.7):
                break
            owner = owner[key]
        owner[key] = rng.choice(values)
        file.write_text(json.dumps(data))
        try:
            bb = errata.load(path)
            errata.ask(bb, "Which?", cap=2)
            seen.add(True)
        except UserError as e:
            assert "\n" not in str(e)
            seen.add(False)
        except Exception as e:
            raise AssertionError(f"{file.name}: {key}={owner[key]!r}: {type(e).__name__}") from e
        shutil.rmtree(path)
    assert seen == {True, False}


def test_a_library_that_is_missing_is_named() -> None:
    texts = (
        "V requires the Torchvision library but it was not found in your environment. Check out "
        "the instructions on the\ninstallation page: https://pytorch.org/get-started/",
        "Package `num2words` is required to run it. Install it with `pip install num2words`.",
        "No module named 'timm'",
    )
    for text, package in zip(texts, ("torchvision", "num2words", "timm"), strict=True):
        error = ModuleNotFoundError if "module" in text else ImportError
        with pytest.raises(MissingExtra, match=f"installed: pip install {package}") as e:
            with _folders.load_errors("m", "model"):
                raise error(text, name=package)
        assert "\n" not in str(e.value)
    with (
        pytest.raises(BadBackbone, match=r"\(RuntimeError\)\."),
        _folders.load_errors("m", "model"),
    ):
        raise RuntimeError("long " * 100)
    with (
        pytest.raises(BadImage, match="own"),
        _folders.load_errors("m", "model"),
    ):
        raise BadImage("own")


def test_the_reason_of_a_library_is_not_cut_in_a_sentence() -> None:
    two_lines = ValueError("Read the instructions on the\ninstallation page. " + "More. " * 40)
    assert _folders.reason(two_lines).startswith(
        "ValueError: Read the instructions on the installation page"
    )
    assert _folders.reason(two_lines).endswith("More")
    assert _folders.reason(ValueError("Sizes differ:\n\tone\n\ttwo")) == "ValueError: Sizes differ"
    assert _folders.reason(ValueError("x" * 200 + ".")) == "ValueError"


def test_a_token_without_an_embedding_is_refused() -> None:
    for family in (*tiny.FAMILIES, *tiny.WINDOWED, *tiny.DRAWING):
        bb = {**tiny.FAMILIES, **tiny.WINDOWED, **tiny.DRAWING}[family]()
        bb.tokenizer.add_tokens(["zork"])
        prompt = Prompt.of("Which?")
        with pytest.raises(BadBackbone, match=r"token 'zork'.*resize_token_embeddings"):
            bb.encode([Prompt.of("Which zork?")])
        with pytest.raises(BadBackbone, match=r"token 'zork'.*resize_token_embeddings"):
            bb.encode([prompt], ["zork"])
        bb.encode([prompt], ["red"])


def test_the_command_line_says_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "config.json").write_text("null")
    with pytest.raises(SystemExit) as end:
        main(["ask", str(copied), "Which?"])
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(said) == 1 and "it holds null, not an object" in said[0]


def test_a_model_that_cannot_read_what_its_processor_makes_is_refused(
    edits: list[Edit],
) -> None:
    bb = tiny.llava(layers=1)
    batch = bb.encode([edits[0].prompt])
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(BadBackbone, match="cannot read what its own processor made"):
        bb.logits(batch)
