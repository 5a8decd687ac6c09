"""`analyze sensitivity`: KL under noise, against the model run with hooks of its own."""

from __future__ import annotations

import pytest
import torch

from errata.analyses.sensitivity import (
    NoiseHook,
    SensitivityAnalysis,
    SensitivityRecords,
    SensitivitySummary,
    groups,
    noised,
)
from errata.core.analysis import Subject
from errata.core.errors import BadSpec
from errata.core.types import Case, Prompt
from errata.training.optimise import generator
from tests import tiny


def cases(edits):
    return tuple(Case(e.id, e, ()) for e in edits)


def directly(bb, prompt, layer, columns, noise):
    """KL of the next token when noise [n, d] is added to what enters a block, by a plain hook."""
    inputs = bb.encode([prompt]).inputs

    def add(_, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[0, columns] += noise
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    with torch.no_grad():
        clean = bb.model(**inputs).logits[0, -1].double()
        handle = bb.blocks[layer].register_forward_pre_hook(add, with_kwargs=True)
        dirty = bb.model(**inputs).logits[0, -1].double()
        handle.remove()
    p, q = clean.softmax(-1), dirty.softmax(-1)
    return float((p * (p / q).log()).sum())


@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_kl_is_that_of_noise_at_these_tokens(family, edits):
    bb = tiny.shared(family)
    some, records = edits[:2], SensitivityRecords({}, {})
    batch = bb.encode([e.prompt for e in some])
    sizes = [("absolute", 0.5), ("relative", 2.0)]
    noised(Subject(bb, seed=3), batch, [e.id for e in some], [0, 2], sizes, 1, records)
    for b, edit in enumerate(some):
        for at, layer in enumerate((0, 2)):
            n = int(batch.lengths[b])
            draw = torch.randn(
                n, bb.width, generator=generator(3, "sensitivity", edit.id, layer, 0)
            )
            for group, masks in groups(batch).items():
                places = [mask[b].nonzero()[:, 0] for mask in masks]
                columns = torch.cat(places)
                wanted = directly(bb, edit.prompt, layer, columns, 0.5 * draw[columns])
                found = records.kl["absolute", group, 0.5][edit.id][at]
                assert found == pytest.approx(wanted, rel=2e-3, abs=1e-5)
                named = [group] if len(masks) == 1 else ["visual", "text"]
                parts = [
                    2.0 * records.std[g][edit.id][at] * draw[p]
                    for g, p in zip(named, places, strict=True)
                ]
                wanted = directly(bb, edit.prompt, layer, columns, torch.cat(parts))
                found = records.kl["relative", group, 2.0][edit.id][at]
                assert found == pytest.approx(wanted, rel=2e-3, abs=1e-5)


def test_noise_touches_its_columns_only_and_knows_their_spread():
    y = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [100.0, 100.0], [10.0, 30.0]]])
    few = torch.tensor([[True, True, False, False]])
    one = torch.tensor([[False, False, False, True]])
    noise = torch.ones(1, 4, 2)
    patch = NoiseHook("text.0.in", (few, one), noise, 2.0, relative=True)
    change = patch.at("text.0.in", y, y, None) - y
    spread = 5.0**0.5  # of 1, 3, 5, 7; 10 and 30 have 10
    assert [float(s) for s in patch.std] == pytest.approx([spread, 10.0])
    wanted = torch.tensor([2 * spread, 2 * spread, 0.0, 20.0])[None, :, None].expand(1, 4, 2)
    torch.testing.assert_close(change, wanted)
    plain = NoiseHook("text.0.in", (few, one), noise, 2.0, relative=False)
    torch.testing.assert_close(plain.at("", y, y, None)[0, 0], torch.tensor([3.0, 5.0]))
    empty = NoiseHook("text.0.in", (few & one,), noise, 2.0, relative=True)
    assert torch.equal(empty.at("", y, y, None), y) and float(empty.std[0]) == 0


def test_groups_are_what_they_say(pictures):
    batch = tiny.shared("llava").encode([Prompt.of("Which?", pictures[0])])
    places = {
        g: [m[0].nonzero()[:, 0].tolist() for m in masks] for g, masks in groups(batch).items()
    }
    assert places == {
        "visual": [[1, 2, 3, 4]], "text": [[5, 6]], "both": [[1, 2, 3, 4], [5, 6]], "last": [[7]],
    }  # fmt: skip


def test_excess_and_tables_by_hand():
    kl = {
        ("absolute", group, 2.0): {"a": [x, 0.0], "b": [x + 1, 1.0]}
        for group, x in (("visual", 1.0), ("text", 2.0), ("both", 5.0), ("last", 0.0))
    }
    std = {g: {"a": [4.0, 1.0], "b": [4.0, 1.0]} for g in ("visual", "text", "last")}
    summary = SensitivitySummary(SensitivityRecords(kl, std), [3, 5], ["a", "b"])
    # 5 - 1 - 2 = 2 and 6 - 2 - 3 = 1; 0 - 0 - 0 and 1 - 1 - 1
    assert [r[:4] for r in summary.excess().rows] == [
        ("absolute", 2.0, 3, 1.5), ("absolute", 2.0, 5, -0.5),
    ]  # fmt: skip
    row = next(r for r in summary.table().rows if r[1:4] == ("visual", 2.0, 3))
    # two cases, 1 and 2: Student's t of one degree of freedom is 12.706
    assert row[4:8] == pytest.approx((1.5, 1.5 - 6.353, 1.5 + 6.353, 2), abs=1e-3)
    assert row[8:] == (4.0, 2.0, 0.5)
    row = next(r for r in summary.table().rows if r[1:4] == ("both", 2.0, 3))
    assert row[8:] == (None, 2.0, None), "it has no deviation of its own"
    peak = summary.peaks()["absolute"]["2"]["both"]
    assert peak == {"block": 3, "agree": 1.0}


def test_an_analysis_depends_on_the_seed_alone(edits):
    bb = tiny.shared("llava")
    look = SensitivityAnalysis(absolute=(1.0,), relative=(0.5,), layers=(1, -1), draws=2)
    one = look.look(Subject(bb, cases(edits), rows=4, seed=1))
    alone = look.look(Subject(bb, cases(edits), rows=1, seed=1))
    other = look.look(Subject(bb, cases(edits), rows=4, seed=2))
    values = [[r[4] for r in f.tables[0].rows] for f in (one, alone, other)]
    assert values[0] == pytest.approx(values[1], abs=2e-5) and values[0] != values[2]
    assert {r[3] for r in one.tables[0].rows} == {1, 3}
    assert [f.name for f in one.figures] == ["sensitivity-absolute", "sensitivity-relative"]
    assert min(values[0]) > 0


def test_what_makes_no_figure_is_refused(edits):
    bb = tiny.shared("llava")
    for options, words in (
        ({"absolute": (0.0,)}, "sizes above 0"),
        ({"absolute": (), "relative": ()}, "no noise"),
        ({"relative": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)}, "up to 5"),
    ):
        with pytest.raises(BadSpec, match=words):
            SensitivityAnalysis(**options).look(Subject(bb, cases(edits)))
    with pytest.raises(BadSpec, match="about images"):
        SensitivityAnalysis().look(Subject(bb))
