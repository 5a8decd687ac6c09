"""A gate of a third party is one file; editors, states, patches, analyses and commands know it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from errata.analyses.gate import GateAnalysis
from errata.cli.plugins import rows_of
from errata.contract import gates as contract
from errata.core import registry
from errata.core.analysis import Subject
from errata.core.errors import BadSpec, UnknownName
from errata.core.gate import gate_class
from errata.core.model.recorder import outputs_at
from errata.core.types import Case, Prompt
from errata.editors.dualedit import DualEdit
from errata.io.patch_folder import load, save
from errata.io.states import store
from errata.patches.adapter import Adapter
from tests import tiny

TEXT_MEAN = '''"""Gate `text_mean`: compares the mean of the prompt's text tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from errata.core.gate import Gate, TokenColumns


class TextMeanGate(Gate):
    """Cosine of the means over text tokens, with a threshold."""

    name = "text_mean"
    reads = "mean of the text tokens"

    def key(self, states_BTd: Tensor, columns: TokenColumns) -> Tensor:
        at = torch.arange(states_BTd.shape[1], device=states_BTd.device)
        text_BT = (at < columns.lengths[:, None]) & ~columns.vision
        weights_BT = text_BT / text_BT.sum(1, keepdim=True)
        return (states_BTd * weights_BT[..., None]).sum(1)
'''
SETTINGS = {
    **{"text_layer": 1, "visual_layer": 2, "mid": 16, "heads": 4, "steps": 2, "batch": 2},
    **{"lr": 1e-2, "gate_cases": 4},
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one module, the gate, and its entry point."""
    (tmp_path / "text_mean_gate.py").write_text(TEXT_MEAN, encoding="utf-8")
    info = tmp_path / "text_mean_gate-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: text-mean-gate\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[errata.gates]\ntext_mean = text_mean_gate:TextMeanGate\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_gate_from_outside_is_one_file(
    cases: list[Case], ragged: list[Prompt], tmp_path: Path
) -> None:
    """It is listed, checked, tuned, saved and loaded, and it decides."""
    assert "text_mean" in registry.names("gates")
    assert {"name": "text_mean", "summary": "from text-mean-gate"} in rows_of("gates")
    for _, check in contract.checks(gate_class("text_mean")):
        check()

    backbone = tiny.shared("llava")
    editor = DualEdit(gate="text_mean", **SETTINGS)
    state = editor.prepare(backbone, cases)
    assert state is not None
    assert set(state.meta["thresholds"]) == {"leaky", "prompt", "text_mean"}
    patch = editor.edit(backbone, [cases[0].edit], state).patch
    assert isinstance(patch, Adapter)
    site = patch.gate.site
    assert patch.gate.threshold == state.meta["thresholds"]["text_mean"][site]

    save(patch, tmp_path / "patch")
    store(state)
    loaded = load(tmp_path / "patch", backbone)
    assert isinstance(loaded, Adapter) and loaded.gate == patch.gate

    prompts = [cases[0].edit.prompt, *ragged]
    batch = backbone.encode(prompts)
    outputs = outputs_at(backbone, batch, [site])[site]

    def mean(b: int) -> torch.Tensor:
        text = [t for t in range(int(batch.lengths[b])) if not batch.vision[b, t]]
        return outputs[b, text].mean(0)

    cosines = [float(torch.cosine_similarity(mean(b), mean(0), 0)) for b in range(len(prompts))]
    with backbone.applied(loaded), backbone.ask(batch) as question:
        opened = question.ctx.memo[id(loaded), site][1]  # type: ignore[attr-defined]
    assert opened.tolist() == [c >= patch.gate.threshold for c in cosines]
    assert opened.tolist()[0] and not all(opened.tolist())


@pytest.mark.usefixtures("installed")
def test_the_gate_analysis_shows_it(cases: list[Case]) -> None:
    bb = tiny.shared("llava")
    findings = GateAnalysis(layers=(1,)).look(
        Subject(bb, tuple(cases), split=lambda _: tuple(cases))
    )
    readings = [row[0] for row in findings.tables[0].rows]
    assert list(dict.fromkeys(readings)) == ["visual", "text", "prompt", "text_mean", "leaky"]


def test_a_state_without_the_gate_says_what_to_do(cases: list[Case], request) -> None:
    """Prepared before the gate was installed."""
    bb = tiny.shared("llava")
    state = DualEdit(**SETTINGS).prepare(bb, cases)
    request.getfixturevalue("installed")
    with pytest.raises(BadSpec, match=r"'text_mean'.*--set threshold"):
        DualEdit(gate="text_mean", **SETTINGS).edit(bb, [cases[0].edit], state)
    DualEdit(gate="text_mean", threshold=0.5, **SETTINGS).edit(bb, [cases[0].edit], state)


def test_an_unknown_gate_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownName, match=r"unknown gate 'promt'.*'prompt'.*leaky, none, prompt"):
        DualEdit(gate="promt")
