"""What the scripts of `perf` share: products are counted, processes measured, plots drawn."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    return importlib.import_module


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
