"""Models in GGUF: read through transformers into ordinary dense models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.cli import main
from errata.core.errors import BadBackbone, BadSpec, MissingExtra, UserError
from errata.core.types import Edit, Prompt
from errata.io.patch_folder import save
from errata.testing import gguf_files
from errata.testing.zoo import language

PROMPTS = [Prompt.of("What colour is the thing?"), Prompt.of("It")]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    return language.MODELS["llama"][1]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parts: tuple[Any, Any]) -> Path:
    path = tmp_path_factory.mktemp("gguf")
    gguf_files.write_llama(*parts, path / "tiny.gguf")
    gguf_files.write_llama(*parts, path / "tiny-Q8_0.gguf", quantised=True)
    return path


def logits(bb: Any) -> torch.Tensor:
    with torch.no_grad():
        return bb.logits(bb.encode(PROMPTS, ["red", "blue ring"]))


def test_a_file_gives_the_answers_of_the_model_that_it_was_made_from(
    folder: Path, parts: tuple[Any, Any]
) -> None:
    plain = errata.wrap(*parts)
    by_path = errata.load(folder / "tiny.gguf")
    assert by_path.name == str(folder / "tiny.gguf")
    assert torch.equal(logits(by_path), logits(plain))
    quantised = errata.load(folder, gguf_file="tiny-Q8_0.gguf")
    gap = (logits(quantised) - logits(plain)).abs().max()
    assert 0 < gap < 0.2 * logits(plain).abs().max()
    assert quantised.fingerprint() != by_path.fingerprint()


def test_it_is_an_ordinary_model_with_the_fingerprint_of_its_saved_copy(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    bb: Any = errata.load(folder, gguf_file="tiny-Q8_0.gguf")
    bb.model.save_pretrained(tmp_path)
    bb.tokenizer.save_pretrained(tmp_path)
    assert errata.load(tmp_path).fingerprint() == bb.fingerprint()
    narrow = errata.load(folder, gguf_file="tiny-Q8_0.gguf", dtype="bfloat16")
    assert narrow.dtype == torch.bfloat16 and narrow.fingerprint() == bb.fingerprint()
    own: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="tiny-Q8_0.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="tiny-Q8_0.gguf")
    assert errata.wrap(own, tokenizer).fingerprint() == bb.fingerprint()


def test_an_edit_is_saved_and_asked_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bb = errata.load(folder / "tiny.gguf")
    question = PROMPTS[0].text
    editor = errata.editor("ft_l", steps=40, lr=3e-2)
    patch = editor.edit(bb, [Edit(PROMPTS[0], "ring", id="a")]).patch
    save(patch, tmp_path / "patch")
    with bb.applied(patch):
        (answer,) = errata.ask(bb, question, cap=3)
    assert errata.ask(bb, question, cap=3) != [answer]
    for model in ([str(folder), "--gguf-file", "tiny.gguf"], [str(folder / "tiny.gguf")]):
        args = ["ask", *model, question, "--patch", str(tmp_path / "patch"), "--max-tokens", "3"]
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code in (0, None)
        assert answer.text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("", "none.gguf", "has no file 'none.gguf'. It has tiny-Q8_0.gguf, tiny.gguf"),
        ("", "config.json", "no GGUF file"),
        ("broken.gguf", None, "no GGUF file, or damaged"),
        ("cut.gguf", None, "cannot load"),
        ("m-00001-of-00002.gguf", None, "llama-gguf-split --merge"),
        ("", None, "Name the file: errata ask"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    folder: Path, tmp_path: Path, name: str, file: str | None, said: str
) -> None:
    whole = (folder / "tiny.gguf").read_bytes()
    for n, data in (
        ("tiny.gguf", whole),
        ("tiny-Q8_0.gguf", whole),
        *(
            (n, data)
            for n, data in (("broken.gguf", b"no"), ("cut.gguf", whole[:900]))
            if n == name
        ),
    ):
        (tmp_path / n).write_bytes(data)
    with pytest.raises(BadBackbone) as caught:
        errata.load(tmp_path / name if name else tmp_path, gguf_file=file)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_uses_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadSpec, match="bundled model 'micro-vlm' has no GGUF"):
        errata.load("micro-vlm", gguf_file="x.gguf")
    with pytest.raises(BadSpec, match="name of a file"):
        errata.load(folder, gguf_file=3)  # type: ignore[arg-type]
    args = ["ask", "micro-vlm", "What?", "--gguf-file", "x.gguf"]
    with pytest.raises(SystemExit):
        main(args)
    assert "has no GGUF files" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "gguf" else find(n, *a)
    )
    with pytest.raises(MissingExtra, match=r"pip install 'errata\[gguf\]'"):
        errata.load(folder / "tiny.gguf")


def test_a_family_that_reads_no_gguf_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.backbones.hf_lm import HfLm
    from errata.backbones.hf_vlm import HfVlm

    monkeypatch.setattr(HfLm, "accepts", classmethod(lambda cls, config: False))
    monkeypatch.setattr(HfVlm, "accepts", classmethod(lambda cls, config: True))
    with pytest.raises(UserError, match="HfVlm, which errata does not read from GGUF"):
        errata.load(folder / "tiny.gguf")


def test_a_patch_is_merged_into_the_saved_model(folder: Path, tmp_path: Path) -> None:
    bb: Any = errata.load(folder / "tiny-Q8_0.gguf")
    patch = errata.editor("ft_l", steps=4, lr=1e-2).edit(bb, [Edit(PROMPTS[0], "ring")]).patch
    with pytest.raises(BadBackbone, match="its patches fit"):
        errata.merge_patches(bb.name, patch, tmp_path / "merged")
    bb.model.save_pretrained(tmp_path / "saved")
    bb.tokenizer.save_pretrained(tmp_path / "saved")
    errata.merge_patches(tmp_path / "saved", patch, tmp_path / "merged")
    with bb.applied(patch):
        edited = logits(bb)
    assert torch.allclose(logits(errata.load(tmp_path / "merged")), edited, atol=1e-4)


def test_a_family_that_transformers_reads_no_gguf_of(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "rwkv.gguf"), "rwkv6")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    with pytest.raises(BadBackbone, match="architecture rwkv6 is not supported"):
        errata.load(tmp_path / "rwkv.gguf")
