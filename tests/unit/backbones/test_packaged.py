"""Language models whose weights come inside a Python package."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

import errata
from errata.backbones._language import packaged
from errata.cli import main
from errata.core.errors import BadBackbone, MissingExtra
from errata.io import packaged_models
from errata.io.packaged_models import MODELS, place
from errata.testing import gguf_files
from errata.testing.zoo import language

NAME = "smollm2-135m"
REAL = MODELS[NAME]
needs_weights = pytest.mark.skipif(
    REAL.paths() is None, reason=f"{REAL.package} is not installed: {REAL.install}"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A package that holds a tiny model in two parts, in the place of the real one."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    gguf_files.write_llama(*language.MODELS["llama"][1](), tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    for name, part in (("tiny_a", data[:5000]), ("tiny_b", data[5000:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('never imported')")
        (tmp_path / name / "part").write_bytes(part)
    monkeypatch.syspath_prepend(tmp_path)
    model = replace(
        REAL,
        parts=(("tiny_a", "part"), ("tiny_b", "part")),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setattr(packaged_models, "MODELS", {NAME: model})
    return data


def test_it_is_read_once_and_is_the_model_of_its_file(
    package: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = errata.load(NAME)
    assert first.name == NAME and first.style == "raw"
    assert first.fingerprint() == errata.load(tmp_path / "tiny.gguf").fingerprint()
    assert sorted(f.suffix for f in place(NAME).iterdir()) == [".json"] * 4 + [".safetensors"]
    monkeypatch.setattr(packaged, "_convert", None)
    again = errata.load(NAME, style="easyedit")
    assert again.style == "easyedit" and again.fingerprint() == first.fingerprint()
    assert errata.ask(again, "It", cap=3) != []
    assert errata.load(place(NAME)).fingerprint() == first.fingerprint()


def test_a_damaged_package_is_refused_and_leaves_nothing(package: bytes, tmp_path: Path) -> None:
    (tmp_path / "tiny_b" / "part").write_bytes(package[5000:-1])
    with pytest.raises(BadBackbone, match="pip install --force-reinstall"):
        errata.load(NAME)
    assert not place(NAME).exists() and list(place(NAME).parent.glob("*")) == []


def test_without_the_package_one_line_says_what_to_install(
    package: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny_b" / "part").unlink()
    with pytest.raises(MissingExtra, match=r"pip install 'errata\[pocket\]'"):
        errata.load(NAME)
    for args, said in (
        (["list", "backbones"], "not installed: pip install 'errata[pocket]'"),
        (["show", "backbone", NAME], "licence: Apache-2.0"),
    ):
        with pytest.raises(SystemExit):
            main(args)
        assert said in capsys.readouterr().out
    (tmp_path / "tiny_b" / "part").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["list", "backbones", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[NAME]["installed"] is True and rows["micro-vlm"]["type"] == "model"


@needs_weights
@pytest.mark.slow
def test_the_real_model_knows_the_world() -> None:
    bb = errata.load(NAME)
    prompts = ["The Eiffel Tower is located in the city of", "The capital of France is"]
    assert all(a.text.startswith("Paris") for a in errata.ask(bb, prompts, cap=4))
