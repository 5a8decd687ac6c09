"""The cost formulas of `perf/real_shapes.py`, and that the script runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from errata.core import registry
from errata.core.types import Edit, Prompt
from tests import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    import real_shapes

    return real_shapes


def test_neurons_of_a_llava_take_eight_megabytes(script: ModuleType) -> None:
    # 4 blocks x 10 neurons x (key, up, value of 4096 each, two biases) x 16 bytes
    assert script.neuron_bytes(script.SHAPES["llava-1.5-7b"], 10) == 40 * 12290 * 16
    # plain FFN: key and value of 2560, one bias
    assert script.neuron_bytes(script.SHAPES["blip2-opt-2.7b"], 10) == 40 * 5121 * 16


@pytest.mark.parametrize(("family", "kind"), [("llava", "llava"), ("blip2", "opt")])
def test_neurons_are_counted_as_an_edit_makes_them(
    script: ModuleType, family: str, kind: str
) -> None:
    editor = registry.load("editors", "unike")(extrinsic="none", zeta="off", steps=1, neurons=3)
    edit = Edit(Prompt.of("What colour is the ring?"), "red")
    patch = editor.edit(tiny.shared(family), [edit]).patch
    shape = script.Shape(kind, 32, 64, 4, 4, 300, 4)
    numbers = sum(p.numel() for p in patch.parameters())
    assert script.neuron_bytes(shape, 3) == 16 * numbers


def test_a_state_of_a_llava_fits_into_two_gigabytes(script: ModuleType) -> None:
    assert 2 * script.state_numbers(4096, 15000) < 2e9


def test_states_are_counted_tensor_by_tensor(script: ModuleType) -> None:
    state = script.random_state(8, [2, 3], 5)
    assert script.state_numbers(8, 5, layers=2) == sum(t.numel() for t in state.tensors.values())


def test_the_highest_sum_is_told_overall_and_by_span(script: ModuleType) -> None:
    events = [(1, 10), (2, 5), (3, -10), (4, 3), (5, -8)]
    highest, by_name = script.highest_sums(events, [("early", 0, 1), ("late", 3, 4)])
    assert (highest, by_name) == (15, {"early": 10, "late": 8})


def test_the_script_runs(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = script.Shape("opt", 64, 128, 4, 4, 2000, 32)
    monkeypatch.setitem(script.SHAPES, "small", small)
    words = "--shape small --vision 1 --dtype float32 --steps 1 --entries 50 --probes 1 --out"
    monkeypatch.setattr(sys, "argv", ["real_shapes.py", *words.split(), str(tmp_path / "o.json")])
    script.main()
    told: dict[str, Any] = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert told["state"]["memories_of_all_patches"] == 1
    assert told["edit"]["peak"]["allocated"] > told["edit"]["formula"]["neurons"]
    assert told["probes"]["with"]["per_100_s"] > 0
    assert told["edit"]["phases"]["edit/search/logits"]["calls"] == 2
