"""The plain loops that errata is timed against find what errata finds."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import errata

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    return importlib.import_module


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit", "pmet"])
def test_the_plain_loop_writes_what_errata_writes(name: str, script: Any) -> None:
    whole: ModuleType = script("whole_edits")
    bb = whole.model(blocks=5, width=64, ffn=96, vocabulary=1000)
    editor = errata.editor(
        name, steps=3, stop_loss=0.0, eos=False, lr=0.1, context_templates="none",
        **whole.SETTINGS[name],
    )  # fmt: skip
    state = whole.statistics(bb, editor.layers(bb))
    (edit,) = whole.edits(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch = editor.edit(bb, [edit], state).patch
    weights = [w.clone() for w in bb.model.parameters()]
    changes = whole.Plain(bb, editor, state, ("",)).edit(edit)
    for layer, change in changes.items():
        part = patch.part(f"text.{layer}.mlp.down")
        ours = part["B"] @ part["A"]
        assert float((ours - change).norm()) < 0.02 * float(change.norm()), layer
    assert all(torch.equal(a, b) for a, b in zip(weights, bb.model.parameters(), strict=True))
