"""The plain loops that errata is timed against find what errata finds; the meters measure."""

from __future__ import annotations

import importlib
import json
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


def test_products_are_counted_and_timed(script: Any) -> None:
    roofline: ModuleType = script("roofline")
    x, w = torch.randn(40, 30), torch.randn(30, 20)
    assert roofline.products(lambda: x @ w) == 2 * 40 * 30 * 20
    meter = roofline.Meter("cpu", torch.float32)
    phase = roofline.Phase(lambda: [x @ w for _ in range(3)], lambda: x @ w)
    roofline.SIZES = ((32, 32, 32),)
    told = roofline.measured(meter, "products", phase, False)
    assert told["gflop"] == pytest.approx(2 * 2 * 40 * 30 * 20 / 1e9)
    assert told["share"] == pytest.approx(told["gflop_per_s"] / told["peak_gflop_per_s"])


def test_a_child_tells_what_it_took(script: Any, tmp_path: Path) -> None:
    children: ModuleType = script("children")
    work = tmp_path / "work.py"
    work.write_text("import sys, json\nheld = b'x' * 60_000_000\nprint(json.dumps(sys.argv[1:]))\n")
    took = children.run_child(work, "a", 1)
    assert took.json() == ["a", "1"]
    assert took.peak_mb > 60 and took.cpu_s > 0
    work.write_text("raise SystemExit('it broke')\n")
    with pytest.raises(SystemExit, match="it broke"):
        children.run_child(work)


def test_the_plot_shows_every_editor_of_the_table(script: Any) -> None:
    plot: ModuleType = script("many_edits_plot")
    rows = [
        {"editor": e, "edits so far": str(k), "ms of an edit": "5", "ms of a question": "2"}
        for e in ("ft_l", "memit") for k in (50, 100)
    ]  # fmt: skip
    figure = plot.figure(rows)
    assert [line.label for line in figure.panels[0].lines] == ["ft_l", "memit"]
    assert json.dumps(plot.svg(figure)).count("memit") >= 1
