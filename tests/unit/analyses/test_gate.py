"""`analyze gate`: readings against the model's own states, AUC and accuracy by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from errata.analyses.gate import (
    ALL,
    GateAnalysis,
    GateScores,
    GateSummary,
    keys_of,
    readings,
    similar,
)
from errata.core.analysis import Subject
from errata.core.errors import BadSpec
from errata.core.types import Case, Probe, Prompt
from tests import tiny


def case(edit, pictures, k):
    image = edit.prompt.images[0]
    return Case(
        edit.id,
        edit,
        (
            Probe("r", edit.prompt, "reliability", "", edit.target),
            Probe("t", Prompt.of("Which thing is it now?", image), "t_generality", "seen",
                  edit.target),
            Probe("u", Prompt.of("Colour or shape?", image), "t_generality", "unseen",
                  edit.target),
            Probe("m", Prompt.of(edit.prompt.text, pictures[5]), "m_generality", "", edit.target),
            Probe("n", Prompt.of(edit.prompt.text, pictures[4]), "near_locality", "near1", "blue"),
            Probe("f", Prompt.of("Prompt of New Fact"), "t_locality", "far", f"green {k}"),
            Probe("e", Prompt.of("Prompt", image), "near_locality", "near1", "  "),
        ),
    )  # fmt: skip


@pytest.fixture
def cases(edits, pictures):
    return tuple(case(e, pictures, k) for k, e in enumerate(edits))


def by_hooks(bb, prompt, answer, layer):
    """Readings of one question, from the block's own output."""
    batch = bb.encode([prompt], [answer])
    kept = []
    handle = bb.blocks[layer].register_forward_hook(
        lambda _, x, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        if batch.image_keys:
            bb.model(**batch.inputs)
        else:  # the text model alone: BLIP-2's own forward wants an image
            bb.text(**batch.inputs)
    handle.remove()
    state, n = kept[0].reshape(-1, bb.width), int(batch.lengths[0])
    vision = batch.vision[0, :n]
    first = int((~vision).nonzero()[0])
    words = [c for c in range(n) if not vision[c] and c != first]
    out = {"text": state[words].mean(0), "prompt": state[n - 1], "leaky": state[-1]}
    if vision.any():
        out["visual"] = state[:n][vision].mean(0)
    return out


@pytest.mark.parametrize("family", ["llava", "blip2", "gemma3"])
def test_readings_are_states_behind_the_block(family, ragged):
    bb = tiny.shared(family)
    answers = ["red", "blue ring", "green", "thing", "ring"]
    layers = [0, bb.depth - 1]
    found = keys_of(bb, ragged, answers, layers)
    for b, (prompt, answer) in enumerate(zip(ragged, answers, strict=True)):
        for layer in layers:
            wanted = by_hooks(bb, prompt, answer, layer)
            for reading in readings():
                got = found[reading, layer][b]
                if reading in wanted:
                    torch.testing.assert_close(got, wanted[reading], atol=2e-4, rtol=2e-4)
                else:
                    assert bool(got.isnan().all()), "no image, no visual reading"


def test_prompt_does_not_see_the_answer_and_leaky_does(ragged):
    bb = tiny.shared("llava")
    one, other = (keys_of(bb, ragged[:2], a, [2]) for a in (["red", "red"], ["blue", "ring"]))
    for reading in ("visual", "text", "prompt"):
        a, b = one[reading, 2], other[reading, 2]
        torch.testing.assert_close(a, b, equal_nan=True)
    assert float(torch.cosine_similarity(one["leaky", 2], other["leaky", 2], dim=-1).max()) < 0.99


def test_cosines_by_kind(cases):
    bb = tiny.shared("llava")
    found = similar(Subject(bb, rows=3), cases, [1], "x")
    alone = similar(Subject(bb, rows=1), cases, [1], "x")
    kinds = found["prompt", 1]
    assert {k: len(v["e0"]) for k, v in kinds.inside.items()} == {"rephrase": 2, "other image": 1}
    assert {k: len(v["e0"]) for k, v in kinds.outside.items()} == {"near1": 1, "far, text": 1}
    assert "far, text" not in found["visual", 1].outside
    same = found["visual", 1].inside["rephrase"]["e1"]
    assert same == pytest.approx([1.0, 1.0], abs=1e-5), "the picture comes first: it sees no text"
    edit, probe = cases[2].edit, cases[2].probes[4]
    a, b = (by_hooks(bb, p, t, 1)["leaky"] for p, t in
            ((edit.prompt, edit.target), (probe.prompt, "blue")))  # fmt: skip
    wanted = float(torch.cosine_similarity(a, b, dim=-1))
    got = found["leaky", 1].outside["near1"]["e2"][0]
    assert got == pytest.approx(wanted, abs=1e-4)
    assert got == pytest.approx(alone["leaky", 1].outside["near1"]["e2"][0], abs=1e-4)


def summary(known_inside, known_near):
    found, known = (
        {
            (r, 4): GateScores(
                {"rephrase": inside},
                {"near1": near, "far, text": {"a": [-0.5], "b": [-0.5]}},
            )
            for r in readings()
        }
        for inside, near in (
            ({"a": [0.9, 0.6], "b": [0.8]}, {"a": [0.7], "b": [0.1]}),
            (known_inside, known_near),
        )
    )
    return GateSummary(found, known, [4], ["a", "b"])


def test_auc_and_accuracy_by_hand():
    t = summary({"x": [0.9, 0.8]}, {"x": [0.4, 0.3]})
    assert t.auc("prompt", 4, "near1").value == round(5 / 6, 6), "0.6 lies below 0.7"
    assert t.auc("prompt", 4, "far, text").value == 1.0
    assert t.threshold("prompt", 4, "near1") == pytest.approx(0.6), "half way, on training cases"
    # of 0.9, 0.6, 0.8 all reach 0.6; of 0.7, 0.1 one does not
    assert t.accuracy("prompt", 4, "near1").value == 0.75
    # one threshold for all: in scope 1, near 0.5, far 1
    assert t.threshold("prompt", 4, ALL) == pytest.approx(0.6)
    assert t.accuracy("prompt", 4, ALL).value == pytest.approx((1 + (0.5 + 1) / 2) / 2)
    assert t.accuracy("prompt", 4, ALL, on_train=True).value == 1.0


def test_a_threshold_is_tuned_elsewhere():
    """A gate that looks perfect on the given cases is not, with a threshold of other cases."""
    t = summary({"x": [0.99]}, {"x": [0.95]})
    assert t.accuracy("prompt", 4, "near1").value == 0.5, "0.97 lets nothing pass"


def test_all_of_it_on_a_model(cases):
    bb = tiny.shared("llava")
    asked = []

    def split(name):
        asked.append(name)
        return tuple(replace(c, id=f"train {c.id}") for c in cases)

    look = GateAnalysis(layers=(0, -1), shown=1, train=3)
    found = look.look(Subject(bb, cases, "made:up", split=split))
    assert asked == ["train"] and found.facts["training cases"] == 3
    assert [f.name for f in found.figures] == ["gate", "gate-auc", "gate-accuracy"]
    assert len(found.figures[0].panels) == 4
    heat = found.figures[1].panels[0]
    assert heat.columns == ("0", "3") and heat.rows == ("far, text", "near1")
    assert math.isnan(heat.values[0][0]), "no image to read in a text-only question"
    assert found.figures[2].panels[2].rows[-1] == ALL
    rows = {(r[0], r[1], r[2]): r for r in found.tables[0].rows}
    assert rows["leaky", 3, "near1"][-2:] == (12, 4)
    assert len(found.tables[1].rows) == 4 * 5 * 4 - 4, "those of the one block that is drawn"
    assert sum("chosen on training cases" in s for s in found.said) == 4


def test_nothing_to_tell_apart_is_refused(cases):
    bb = tiny.shared("llava")
    bare = tuple(replace(c, probes=()) for c in cases)
    with pytest.raises(BadSpec, match="no rephrases"):
        GateAnalysis().look(Subject(bb, bare, split=lambda _: cases))
    with pytest.raises(BadSpec, match="split 'train'"):
        GateAnalysis().look(Subject(bb, cases))
