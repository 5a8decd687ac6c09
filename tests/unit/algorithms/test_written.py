"""What a block does with the output of its down projection, and what of a value arrives.

The blocks of some models add it as it is, of some times a number, and of some behind a norm.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

import errata
from errata.algorithms.locate_then_edit import multi_layer
from errata.algorithms.locate_then_edit.layer_stats import site_of
from errata.algorithms.locate_then_edit.stream import stream_scale
from errata.algorithms.locate_then_edit.written import note_left, oversized, unwritten
from errata.core.errors import BadSpec, Notice
from errata.core.model.backbone import Backbone
from errata.core.state import State
from errata.core.types import Edit, Prompt
from tests import tiny
from tests.locate import EDITS, LITTLE, TOP, WHOLE, edit_and_listen, made, share_missing, statistics
from tests.texts import TEXTS, llava_with

NORMED = ("gemma2", "olmo2", "glm4", "gemma3")
FAMILIES = (*TEXTS, "blip2", "gemma3")


def _model(family: str) -> Backbone:
    model: Backbone = llava_with(family) if family in TEXTS else tiny.shared(family)
    return model


@functools.cache
def _state(family: str) -> State:
    return statistics(_model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_how_a_block_adds_what_its_down_projection_writes(family):
    scales = [stream_scale(_model(family), layer) for layer in range(4)]
    if family in NORMED:
        assert scales == [None] * 4
    elif family == "granite":
        assert scales == pytest.approx([0.25] * 4, abs=1e-5)
    else:
        assert scales == [1.0] * 4


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2"])
def test_and_in_half_precision(family):
    bb = llava_with(family, torch.bfloat16)
    full, half = (stream_scale(m, 1) for m in (llava_with(family), bb))
    assert half == (full if full in (None, 1.0) else pytest.approx(full, rel=1e-2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_is_written_or_it_is_said(family):
    """What is noted as left is what is missing in the hidden states behind the top layer."""
    bb = _model(family)
    for name in WHOLE:
        editor = made(name)
        result, said = edit_and_listen(editor, bb, EDITS[:1], _state(family))
        left = result.log.notes["edits"][0]["left"]
        missing = share_missing(bb, editor, EDITS[0], result, f"text.{TOP + 1}.in")
        assert left < 0.05 and missing == pytest.approx(left, abs=0.02), (name, left, missing)
        assert not said
        layers = [TOP] if name == "rome" else [1, TOP]
        assert result.patch.sites == {site_of(i) for i in layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_that_is_not_written_is_said(family):
    bb = _model(family)
    for name in WHOLE:
        result, said = edit_and_listen(made(name, **LITTLE[name]), bb, EDITS[:1], _state(family))
        assert result.log.notes["edits"][0]["left"] > 0.5
        assert "of the value that was searched for 'ring' is not written" in said, name
        noted = result.patch.header.notes["remarks"]
        assert all(line in said for line in noted) and "not written" in noted[-1]
        advice = {"rome": "max_upd_ratio=0.0001 has cut", "alphaedit": "lower L2 (now 1e+06)"}
        assert advice.get(name, "Lower mom2_weight (now 1e+06)") in said


@pytest.mark.parametrize("family", NORMED)
def test_one_value_for_all_layers_would_not_be_written(monkeypatch, family):
    """Why each layer has its own: taken for direct, a normed block is not brought to the value."""
    monkeypatch.setattr(multi_layer, "stream_scale", lambda *_: 1.0)
    for name in ("memit", "alphaedit"):
        editor = made(name, steps=20, lr=0.5)
        result, said = edit_and_listen(editor, _model(family), EDITS[:1], _state(family))
        assert 0.6 < result.log.notes["edits"][0]["left"] < 1  # 68 to 89 %
        assert "of the value that was searched for 'ring' is not written" in said


def test_layers_with_values_of_their_own():
    """Each is written a part of its own residual: 1/3, 1/2 and all; what is left is multiplied."""
    bb, state = _model("gemma2"), _state("gemma2")
    editor = made("memit", layers=(0, 1, 2))
    assert editor.stages(bb) == [[0], [1], [2]]
    assert made("memit", layers=(0, 1, 2)).stages(_model("granite")) == [[0, 1, 2]]
    result, _ = edit_and_listen(editor, bb, EDITS[:1], state)
    assert result.log.notes["edits"][0]["left"] < 0.01
    assert result.log.notes["edits"][0]["steps"] > 3  # of three searches
    one, _ = edit_and_listen(made("memit", layers=(0,)), bb, EDITS[:1], state)
    three, alone = (r.patch.part(site_of(0)) for r in (result, one))
    assert torch.allclose(3 * three["B"] @ three["A"], alone["B"] @ alone["A"], atol=1e-5)


def test_shares_of_layers_are_multiplied():
    logs = [{}, {}]
    value, start = torch.tensor([[4.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    note_left(logs, value, start, torch.tensor([[1.0, 0.0], [1.0, 1.1]]), "mlp.down")
    assert logs == [{"left": 0.75}, {"left": 0.0}]  # nothing was searched for the second
    note_left(logs, value, start, torch.tensor([[2.0, 0.0], [1.0, 1.0]]), "mlp.down")
    assert logs[0] == {"left": 0.375}


def test_what_is_said_of_many():
    logs = [{"left": 0.2}, {"left": 0.83}, {"left": 0.1, "left.attn.o": 1.7}, {"left": math.nan}]
    edits = [Edit(Prompt.of(x), "y", id=x) for x in "abcd"]
    assert unwritten(edits[:1], logs[:1], "Do.") == ""
    assert unwritten(edits[:2], logs[:2], "Do.") == (
        "83% of the value that was searched for 'b' is not written. Do."
    )
    assert unwritten(edits[:3], logs[:3], "Do.") == (
        "the model is 1.7 times as far from the value that was searched for 'c' as before the "
        "edit, and more than half of it for 2 of 3 edits. Do."
    )
    assert "for 3 of 4 edits" in unwritten(edits, logs, "Do.")  # no number is not written either
    assert oversized({"a": 0.9, "b": 1.0}, "Do.") == "" == oversized({}, "Do.")
    assert oversized({"a": 0.9, "b": 66.1}, "Do.").startswith("the change of b is 66.1 times as")


def test_groups_and_joint_edits_are_noted_each_by_its_own():
    """One line for all groups; in its notes each patch has its own."""
    bb, state = _model("llama"), _state("llama")
    for name in WHOLE:
        editor = made(name, **LITTLE[name])
        with pytest.warns(Notice, match=r"more than half of it for 2 of 2 edits") as said:
            results = editor.edit_groups(bb, [EDITS[:1], EDITS[1:]], [state] * 2)
        assert len(said) == 1
        for edit, result in zip(EDITS, results, strict=True):
            (line,) = result.log.notes["remarks"]
            assert f"'{edit.id}'" in line and "2 of 2" not in line
        joint, line = edit_and_listen(editor, bb, EDITS, state)
        assert "2 of 2 edits" in line
        assert all(e["left"] > 0.5 for e in joint.log.notes["edits"])
    # rome makes one edit on top of the other: what is left is measured behind both
    joint, _ = edit_and_listen(made("rome"), bb, EDITS, state)
    first, last = (e["left"] for e in joint.log.notes["edits"])
    assert last < 1e-3 < first


def test_a_change_that_outweighs_its_weight_is_said():
    bb, state = _model("llama"), _state("llama")
    settings = {"clamp": 200.0, "lr": 50.0}
    result, said = edit_and_listen(made("rome", **settings), bb, EDITS[:1], state)
    assert "the change of text.2.mlp.down is" in said and "max_upd_ratio" in said
    (line,) = result.log.notes["remarks"]
    assert line in said
    limited, said = edit_and_listen(
        made("rome", **settings, max_upd_ratio=0.9), bb, EDITS[:1], state
    )
    assert limited.log.notes["edits"][0]["layers"]["2"]["change"] == pytest.approx(0.9, abs=1e-3)
    assert "the change of" not in said


def test_an_empty_null_space_is_refused_or_said():
    bb, state = _model("llama"), _state("llama")
    with pytest.raises(BadSpec, match=r"of layers 1, 2 is below nullspace_threshold=1e-12 \(abs"):
        made("alphaedit", nullspace_threshold=1e-12, threshold="absolute").edit(bb, EDITS, state)
    with pytest.raises(BadSpec, match=r"less nullspace_cov_reg=9: the null space is empty"):
        made("alphaedit", nullspace_cov_reg=9.0).edit(bb, EDITS, state)
    least = [float(torch.linalg.eigvalsh(state.tensors[f"moment/{i}"].double())[0]) for i in (1, 2)]
    between = sum(least) / 2
    editor = made("alphaedit", nullspace_threshold=between, threshold="absolute")
    result, said = edit_and_listen(editor, bb, EDITS[:1], state)
    empty = 1 + (least[1] > least[0])
    assert f"of layers {empty} is below" in said and "nothing is written there" in said
    assert any("nothing is written there" in line for line in result.log.notes["remarks"])
    soft = made("alphaedit", nullspace_threshold=1e-12, threshold="absolute", null_proj_alpha=0.5)
    _, said = edit_and_listen(soft, bb, EDITS[:1], state)
    assert "nothing is written" not in said  # half of the update is not projected


@pytest.mark.parametrize("name", ["memit", "pmet"])
def test_the_default_weight_is_the_number_of_features(name):
    """And not the papers' 15000, with which a narrow FFN keeps most of a value."""
    bb, width = _model("llama"), _model("llama").weight(site_of(TOP))[0]
    left = {}
    for weight in ("auto", float(width), 15000.0):
        editor = made(name, mom2_weight=weight)
        result, said = edit_and_listen(editor, bb, EDITS[:1], _state("llama"))
        (left[weight],) = (line["left"] for line in result.log.notes["edits"])
        assert ("Lower mom2_weight (now 15000)" in said) == (weight == 15000.0)
    assert left["auto"] == left[width] < left[15000.0]
    assert errata.editor(name).config.mom2_weight == "auto"
    presets = errata.editor(name).presets
    assert all(isinstance(p["mom2_weight"], float) for p in presets.values())
