"""The card of a patch: metadata that the hub reads, and text that stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from errata.core.patch import Header
from errata.core.types import Edit, Prompt
from errata.io.patch_card import SHOWN, CardFacts, card, code
from errata.patches.delta import Delta

HOSTILE = (
    "a `code` span",
    "``` fence",
    "two\n---\nlicense: evil",
    "<script>alert(1)</script>",
    "a | b | c",
    "[link](javascript:x) ![i](x)",
    "`" * 7,
    "\u202egnp.exe \x1b[31m \u2028 \ud800 é 世",
    " `x` ",
)
HEAD = Header("hand", backbone="llava-hf/llava-1.5-7b-hf", fingerprint="ab" * 32, revision="r1")


def patch(*edits: Edit, **header: Any) -> Delta:
    part = {"A": torch.ones(1, 4), "B": torch.ones(4, 1)}
    return Delta({"text.1.mlp.down": part}).with_header(replace(HEAD, **header), edits)


def metadata(text: str) -> dict[str, Any]:
    start, block, _ = text.split("---\n", 2)
    assert not start
    found: dict[str, Any] = yaml.safe_load(block)
    return found


def test_the_hub_finds_model_library_and_license() -> None:
    text = card(patch(Edit("Who?", "Sol")), CardFacts("me/x", 8, license="mit"))
    assert metadata(text) == {
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "base_model_relation": "adapter",
        "library_name": "errata",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["errata", "knowledge-editing"],
    }
    for line in ("`llava-hf/llava-1.5-7b-hf`", f"`{'ab' * 32}`", '"me/x"', "bit for bit"):
        assert line.strip("`") in text
    pictured = patch(Edit(Prompt.of("What?", "a.png"), "x"))
    assert metadata(card(pictured, CardFacts("x", 8)))["pipeline_tag"] == "image-text-to-text"


def test_a_model_in_a_folder_is_no_base_model_and_its_path_is_not_told(tmp_path: Path) -> None:
    for name in (str(tmp_path / "llava"), "micro-vlm", "a\n- b: c/d"):
        text = card(patch(Edit("Who?", "Sol"), backbone=name), CardFacts("x", 8))
        assert "base_model" not in metadata(text) and str(tmp_path) not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_fact_can_be_no_markdown(text: str) -> None:
    """It stands in one line, between two fences that are longer than any in it."""
    shown = code(text)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    inside = shown[len(fence) : -len(fence)]
    assert shown.endswith(fence) and fence not in inside and shown.isprintable()
    if not any("\ud800" <= c <= "\udfff" for c in text):
        edits = [Edit(text, text, old=text, id="1"), Edit("Who?", "Sol")]
        whole = card(patch(*edits), CardFacts("x", 8, measured=[text]))
        assert metadata(whole)["library_name"] == "errata" and "license" not in metadata(whole)
        for line in whole.splitlines():
            assert line.count(code(text)) in (0, 1, 3)
            assert "<script" not in line.replace(code(text), "")


def test_long_cards_are_cut() -> None:
    edits = [Edit(f"Question {i}?", "x" * 5000, id=str(i)) for i in range(SHOWN + 9)]
    text = card(patch(*edits), CardFacts("x", 8))
    assert "- and 9 more (edits.jsonl)" in text and len(text) < 30_000


def test_what_was_measured_and_what_is_needed_is_told() -> None:
    notes = {"on_top_of": ["ab12"]}
    facts = CardFacts("x", 8, state="cd" * 32, measured=("1 of 1 edited questions",))
    text = card(patch(Edit("Who?", "Sol"), notes=notes), facts)
    assert "Found on top of the patch `ab12`" in text
    assert "## Measured" in text and "1 of 1 edited questions" in text
    assert f"prepared state `{'cd' * 32}`" in text
