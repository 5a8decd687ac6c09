"""`analyze drift`: what it reads is what passes while drawing; controls; nothing fails quietly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from errata.analyses.drift import DriftAnalysis, conditions
from errata.analyses.drift.conditions import COMPARED, DriftRecords
from errata.analyses.drift.distances import ALL, SUBJECT, StageShift
from errata.analyses.drift.summary import DriftSummary
from errata.analyses.drift.trace import StateSwap, drawing_steps, trace_drawing
from errata.core import registry
from errata.core.analysis import Subject
from errata.core.errors import BadBackbone, BadSpec, NotFinite
from errata.core.model.generation import Stage
from errata.core.types import Case, Edit, JudgeQuestion, Probe, Prompt, StatedFact, Verdict
from errata.patches.delta import Delta
from tests import tiny

NAMES = ("ring", "thing", "blue ring", "Fact")


def case(name, k):
    view = JudgeQuestion(f"colour of {name}?", f"{name} must be red", "red", "blue", "colour")
    aids = StatedFact(Prompt.of(f"the {name} is red, one {name}"), "It is red.")
    return Case(
        f"c{k}",
        Edit(Prompt.of(f"What is the colour of the {name} ?"), "red", name, "blue", f"c{k}"),
        (
            Probe("vqa/stage1", Prompt.of(f"the shape of a {name} {'now' * k}"), "vqa", "stage1",
                  view=view, aids=aids),
            Probe("reasoning/stage1", Prompt.of(f"Which {name}?"), "reasoning", "stage1", "red",
                  cap=4, view=view),
            Probe("vqa/stage2", Prompt.of(f"a {name}"), "vqa", "stage2", view=view),
        ),
    )  # fmt: skip


@pytest.fixture
def cases():
    return tuple(case(name, k) for k, name in enumerate(NAMES))


@pytest.fixture
def bb():
    return tiny.micro_umm()


@pytest.fixture
def judged(monkeypatch):
    """A judge that sees the target where the picture's first pixel is rather red."""

    def judge(pictures):
        found = [p.getpixel((0, 0)) for p, _ in pictures]
        return [Verdict("j", "red" if r > g else "blue", r > g) for r, g, _ in found]

    monkeypatch.setattr(conditions, "judge_of", lambda benchmark: judge)


def editor(**more):
    return registry.load("editors", "ft_l")(**{"layers": [1], "steps": 3, "lr": 0.05, **more})


def looked(bb, cases, **more):
    return DriftAnalysis(steps=3, seeds=2).look(
        Subject(bb, cases, "microworld:vqa@dev", **{"rows": 3, **more})
    )


def table(findings, name):
    found = next(t for t in findings.tables if t.name == name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_everything_is_measured_and_the_controls_hold(bb, cases, judged):
    found = looked(bb, cases, editor=editor())
    assert found.facts["largest change between equal drawings"] == 0.0
    assert found.facts["largest difference between edited states put in and the edit itself"] == 0.0
    stages = [s.name for s in bb.path()]
    assert found.facts["stages"] == [*stages, "picture"]
    means = table(found, "drift")
    assert {r["condition"] for r in means} == set(COMPARED) and all(r["n"] == 4 for r in means)
    twin = [r for r in means if r["condition"] == "twin"]
    assert twin and all(r[m] == 0.0 for r in twin for m in ("cosine", "relative"))
    edit = {(r["stage"], r["group"]): r for r in means if r["condition"] == "edit"}
    assert edit["tap", SUBJECT]["relative"] > 0 and edit["picture", ALL]["relative"] > 0
    times = {r["time"] for r in means if r["stage"] == "velocity"}
    assert len(times) == 3 and 0.0 in times
    oracle = [r for r in means if r["condition"] == "oracle"]
    at_tap = next(r for r in oracle if (r["stage"], r["group"]) == ("tap", ALL))
    assert at_tap["cosine"] is None and at_tap["towards"] == pytest.approx(1.0, abs=1e-5)
    assert len(table(found, "drift-pictures")) == 10 * 4 * 2
    assert {r["stage"] for r in table(found, "drift-four-way")} == {"tap", "projected"}
    assert [f.name for f in found.figures] == [
        "drift-path", "drift-moments", "drift-pictures", "drift-four-way",
    ]  # fmt: skip
    assert "only 4 cases" in found.said[-1]


def test_the_edited_drawing_is_what_the_model_draws_with_the_patch(bb, cases):
    prompts = [c.probes[0].prompt for c in cases]
    patch = editor().edit(bb, [c.edit for c in cases]).patch
    keep = drawing_steps(bb, prompts[0], 3)
    seen = trace_drawing(bb, prompts, NAMES, [0, 1], keep, patch)[0]
    with bb.applied(patch):
        plain = bb.draw(prompts, [0, 1])
    assert all(a.tobytes() == b.tobytes() for x, y in zip(seen.pictures, plain, strict=True)
               for a, b in zip(x, y, strict=True))  # fmt: skip


def test_what_is_read_is_what_hooks_of_its_own_see_in_the_same_call(bb, cases):
    prompts = [c.probes[0].prompt for c in cases]
    keep = drawing_steps(bb, prompts[0], 3)
    kept: dict[str, list[torch.Tensor]] = {}
    handles = [
        bb.site(s.site).last.register_forward_hook(
            lambda m, x, y, name=s.name: kept.setdefault(name, []).append(
                (y[0] if isinstance(y, tuple) else y).clone()
            )
        )
        for s in bb.path()
    ]
    seen = trace_drawing(bb, prompts, NAMES, [3, 5], keep)[0]
    for handle in handles:
        handle.remove()
    for stage in bb.path():
        calls = kept[stage.name]
        if stage.name in seen.text:
            assert len(calls) == 1 and calls[0].equal(seen.text[stage.name])
        else:
            for m, i in enumerate(keep):
                assert calls[i][:8].unflatten(0, (4, 2)).equal(seen.steps[stage.name][m])
    assert seen.moments[0] == 0.0 and list(seen.moments) == sorted(seen.moments)


def test_a_corrupted_block_raises(bb, cases, monkeypatch):
    block = bb.site("draw.1.block").first
    with monkeypatch.context() as m:
        m.setattr(block, "forward", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            looked(bb, cases, editor=editor())
    original = block.forward
    with monkeypatch.context() as m:
        m.setattr(block, "forward", lambda *a, **k: original(*a, **k) * float("nan"))
        with pytest.raises(NotFinite, match=r"stage 'blocks\.1'"):
            looked(bb, cases, editor=editor())


def test_a_stage_that_is_not_drawn_through_raises(bb, cases, monkeypatch):
    path = (*bb.path()[:-1], Stage("blocks.9", "head"), bb.path()[-1])
    monkeypatch.setattr(bb, "path", lambda: path)
    with pytest.raises(BadBackbone, match=r"stage 'blocks\.9' .head. was not reached"):
        looked(bb, cases, editor=editor())


def test_states_put_in_change_their_columns_alone(bb, cases):
    prompts = [c.probes[0].prompt for c in cases]
    keep = drawing_steps(bb, prompts[0], 3)
    fresh, where = trace_drawing(bb, prompts, NAMES, [0], keep)
    other = torch.randn(fresh.text["tap"].shape, generator=torch.Generator().manual_seed(0))
    swap = StateSwap(bb.path()[0].site, other, where)
    put, _ = trace_drawing(bb, prompts, NAMES, [0], keep, swap)
    changed = (put.text["projected"] != fresh.text["projected"]).any(-1)
    assert changed.equal(where)
    assert put.text["tap"][where].equal(other[where])


def test_the_subjects_columns_decode_to_it(bb):
    prompts = [Prompt.of("a thing of blue ring now"), Prompt.of("ring here"), Prompt.of("ring")]
    names = ["blue ring", "ring", "ring"]
    batch, (_, where) = bb.encode(prompts), bb.conditioning_columns(prompts, names)
    for b, name in enumerate(names):
        assert bb.decode(batch.ids[b][where[b]].tolist()) == name
        assert not bool(where[b, 0]), "the begin token belongs to nobody"


def test_edits_that_were_made_before(bb, cases, judged):
    patch = editor().edit(bb, [c.edit for c in cases[:3]]).patch
    found = looked(bb, cases, patches=(patch,))
    assert found.facts["cases"] == 3
    assert found.facts["largest difference between edited states put in and the edit itself"] == 0.0
    with pytest.raises(BadSpec, match="0 cases of the patch's edits"):
        looked(bb, cases[3:], patches=(patch,))


def test_an_edit_above_the_tap_is_said_not_to_arrive(bb, cases):
    weight = torch.ones(bb.weight("head")[::-1]) * 0.01
    patch = Delta({"head": {"dense": weight}}).requires_grad_(False)
    patch.with_header(replace(patch.header, fingerprint=bb.fingerprint()), [c.edit for c in cases])
    found = looked(bb, cases, patches=(patch,))
    assert "the edit does not reach the text states that are drawn from" in found.said
    edit = [r for r in table(found, "drift") if r["condition"] == "edit"]
    assert all(r["relative"] == 0.0 for r in edit)


def test_without_a_judge_nothing_is_said_of_pictures(bb, cases):
    found = looked(bb, cases, editor=editor())
    assert found.facts["pictures that show the target"] == {}
    assert table(found, "drift-link") == []


def test_a_rationale_without_the_subject_leaves_out_only_what_follows_it(bb, cases):
    """A random model's rationale names nothing, and here it stands in the place of the prompt."""
    subject = Subject(bb, cases, "microworld:vqa@dev", editor=editor(), rows=4)
    found = DriftAnalysis(steps=3, seeds=1, variant="replace").look(subject)
    conditions = {r["condition"] for r in table(found, "drift")}
    assert conditions == {c for c in COMPARED if "rationale" not in c}
    assert any(line.startswith("4 cases not drawn after the rationale") for line in found.said)
    assert found.facts["rationales that state the target"] is not None


def test_what_cannot_be_looked_at(bb, cases):
    with pytest.raises(BadBackbone, match="draws no pictures"):
        looked(tiny.shared("llava"), cases, editor=editor())
    with pytest.raises(BadSpec, match="Give --editor NAME, or --patch DIR"):
        looked(bb, cases)
    with pytest.raises(BadSpec, match="seeds=0"):
        DriftAnalysis(seeds=0).look(Subject(bb, cases, "microworld:vqa@dev", editor=editor()))
    with pytest.raises(BadSpec, match=r"0 cases in microworld.* have a picture of stage2"):
        DriftAnalysis(stage="stage2").look(
            Subject(bb, cases, "microworld:vqa@dev", editor=editor())
        )


# -- the numbers, from steps made by hand -----------------------------------------------------

TAP = ("tap", -1, SUBJECT)


def summary_of(sizes, met):
    ids = [f"c{i}" for i in range(len(sizes))]
    records = DriftRecords(
        shifts={
            ("edit", TAP): {c: StageShift(0.0, 0.0, s) for c, s in zip(ids, sizes, strict=True)}
        },
        spreads={TAP: [1.0, 2.0, 4.0]},
        verdicts={"edit": {c: [Verdict("j", "", m) for m in ms]
                        for c, ms in zip(ids, met, strict=True)}},
        stages=("tap",),
    )  # fmt: skip
    return DriftSummary(records, ids, "")


def test_signal_is_in_units_of_the_median_spread():
    s = summary_of([3.0, 5.0], [[True], [False]])
    assert s.values("edit", TAP, "signal") == {"c0": 1.5, "c1": 2.5}
    assert s.mean_of(s.values("edit", TAP, "signal")).value == 2.0


def test_link_is_the_share_of_pairs_in_order():
    met = [[True, True], [True, False], [False, False], [None, None]]
    auc, right, wrong = summary_of([4.0, 1.0, 2.0, 0.5], met).link(TAP, "signal")
    assert (right, wrong) == (2, 2)
    assert auc.value == pytest.approx(3 / 4)  # only (1, 2) is out of order


def test_an_abstaining_judge_has_not_seen_the_target():
    rate = summary_of([1.0, 1.0], [[True, None], [True, False]]).rate("edit")
    assert rate.value == 0.5 and rate.units == 2
