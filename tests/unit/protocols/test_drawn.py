"""direct and reasoning against scripted answers: controls, batches, and what is drawn from what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.measure.protocol import Ask, Protocol, Step, Unit
from errata.core.types import Answer, Case, Edit, JudgeQuestion, Probe, Prompt, StatedFact

VIEW = JudgeQuestion("?", "!", "red")


def case(i: int) -> Case:
    prompt = Prompt.of(f"velm{i} is")
    aids = StatedFact(
        Prompt.of(f"draw a red velm{i}"), f"velm{i} is red", glue=" | ", instruct="Now: "
    )
    probes = (
        Probe("eff", prompt, "efficacy", "stage1", "red"),
        Probe("why1", Prompt.of(f"think of velm{i}"), "reasoning", "stage1", "red", cap=9),
        Probe("why2", Prompt.of(f"think of velm{i} 2"), "reasoning", "stage2", "red", cap=9),
        Probe("vqa1", Prompt.of(f"velm{i}"), "vqa", "stage1", view=VIEW, aids=aids),
        Probe("vqa2", Prompt.of(f"velm{i} on a lawn"), "vqa", "stage2", view=VIEW, aids=aids),
        Probe("far", Prompt.of("sky?"), "t_locality", reference="blue"),
        Probe("other", Prompt.of("a dax"), "i_locality", view=VIEW),
    )
    return Case(f"c{i}", Edit(prompt, "red", f"velm{i}", id=f"e{i}"), probes)


def protocol(spec: str) -> Protocol:
    name, _, argument = spec.partition(":")
    found = registry.load("protocols", name)(argument)
    assert isinstance(found, Protocol)
    return found


def script(ask: Ask, step: int) -> Answer:
    said = f"[{ask.case} {ask.probe.id} {ask.tag or 'edited'}]"
    return Answer(ask.case, ask.probe.id, step, ask.tag, said if ask.probe.cap else "")


def drive(p: Protocol, unit: Unit) -> list[Step]:
    steps: list[Step] = []
    generator = p.steps(unit, ())
    try:
        step = next(generator)
        while True:
            steps.append(step)
            answers = [script(a, len(steps) - 1) for t in step.lanes for a in t.asks]
            step = generator.send(answers)
    except StopIteration:
        return steps


def asked(step: Step, lane: int = 0) -> list[tuple[str, str, str]]:
    return [(a.probe.id, a.tag, a.probe.prompt.text) for a in step.lanes[lane].asks]


def run(spec: str, count: int = 4) -> tuple[list[Step], Unit]:
    p = protocol(spec)
    (unit,) = p.plan([case(i) for i in range(count)], rows=4, seed=0)
    return drive(p, unit), unit


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("direct", "direct:50x10"),
        ("direct:4x2", "direct:4x2"),
        ("direct:5x2", "direct:5x2"),  # a last batch of one
        ("reasoning", "reasoning:prepend:50x10"),
        ("reasoning:replace", "reasoning:replace:50x10"),
        ("reasoning:4x2", "reasoning:prepend:4x2"),
        ("reasoning:instruct:4x4", "reasoning:instruct:4x4"),
    ],
)
def test_arguments(given: str, canonical: str) -> None:
    assert protocol(given).spec == canonical


@pytest.mark.parametrize(
    "bad",
    ["direct:2x4", "direct:x", "direct:0x0", "direct:4", "direct:4x2x1", "reasoning:append",
     "reasoning:prepend:2x4", "reasoning:4x2:prepend", "direct:４x2"],
)  # fmt: skip
def test_bad_arguments(bad: str) -> None:
    with pytest.raises(BadSpec, match=r"for example"):
        protocol(bad)


def test_too_few_cases_is_one_clear_line() -> None:
    with pytest.raises(BadSpec, match=r"needs at least 50 cases .*; 3 cases are planned") as e:
        protocol("direct").plan([case(i) for i in range(3)], rows=4, seed=0)
    assert "\n" not in str(e.value)


def test_an_object_is_edited_once_in_a_sequence() -> None:
    twice = [replace(case(i % 4), id=f"c{i}") for i in range(8)]
    (unit,) = protocol("direct:4x2").plan(twice, rows=4, seed=0)
    for lane in unit.lanes:
        assert sorted(str(c.edit.subject) for c in lane.cases) == [f"velm{i}" for i in range(4)]
    assert len(unit.lanes) == 2
    with pytest.raises(BadSpec):
        protocol("direct:5x5").plan(twice, rows=4, seed=0)


def test_direct() -> None:
    (oracle, pre_other, pre, one, two), unit = run("direct:4x3")
    (lane,) = unit.lanes
    first = lane.cases[0]
    assert all(s.on == "clean" and not s.lanes[0].edits for s in (oracle, pre_other, pre))
    drawn = f"draw a red velm{first.id[1:]}"
    assert asked(oracle)[:2] == [("vqa1", "oracle", drawn), ("vqa2", "oracle", drawn)]
    assert asked(pre_other)[0] == ("other", "pre", "a dax")
    assert asked(pre)[0] == ("vqa1", "pre", f"velm{first.id[1:]}")
    assert [len(s.lanes[0].asks) for s in (oracle, pre_other, pre)] == [8, 4, 8]
    assert [[e.id for e in s.lanes[0].edits] for s in (one, two)] == [
        [c.edit.id for c in lane.cases[:3]],
        [c.edit.id for c in lane.cases[3:]],
    ]
    assert {s.on for s in (one, two)} == {"previous"}
    assert {(p, t) for p, t, _ in asked(one)} == {("eff", "own")}
    assert len(asked(one)) == 3
    closing = [(a.case, a.probe.id) for a in two.lanes[0].asks if not a.tag]
    assert closing == [(c.id, p.id) for c in lane.cases for p in c.probes]


@pytest.mark.parametrize(
    ("variant", "composed"),
    [
        ("replace", "{why}"),
        ("prepend", "{why} | {prompt}"),
        ("instruct", "{why} | Now: {prompt}"),
    ],
)
def test_reasoning_draws_from_what_was_written(variant: str, composed: str) -> None:
    steps, unit = run(f"reasoning:{variant}:4x2")
    oracle, other, ceiling, why, pre, one, two, drawn = steps
    name = unit.lanes[0].cases[0].id
    velm = f"velm{name[1:]}"

    def text(rationale: str, prompt: str) -> str:
        return composed.format(why=rationale, prompt=prompt)

    assert [t for _, t, _ in asked(other)] == ["pre"] * 4
    assert {t for _, t, _ in asked(oracle)} == {"oracle"}
    assert asked(ceiling)[0] == ("vqa1", "ceiling", text(f"{velm} is red", velm))
    assert asked(why)[:2] == [
        ("why1", "pre", f"think of {velm}"),
        ("why2", "pre", f"think of {velm} 2"),
    ]
    assert asked(pre)[:2] == [
        ("vqa1", "pre", text(f"[{name} why1 pre]", velm)),
        ("vqa2", "pre", text(f"[{name} why2 pre]", f"{velm} on a lawn")),
    ]
    assert not [p for p, t, _ in asked(two) if p.startswith("vqa")]
    assert drawn.on == "previous" and not drawn.lanes[0].edits
    assert asked(drawn)[:2] == [
        ("vqa1", "", text(f"[{name} why1 edited]", velm)),
        ("vqa2", "", text(f"[{name} why2 edited]", f"{velm} on a lawn")),
    ]
    assert len(asked(drawn)) == 8 and len(one.lanes[0].edits) == 2


def test_without_a_rationale_the_prompt_is_drawn_alone() -> None:
    p = protocol("reasoning:replace:4x4")
    (unit,) = p.plan([case(i) for i in range(4)], rows=4, seed=0)
    generator = p.steps(unit, ())
    step = next(generator)
    last = step
    try:
        while True:
            last = step
            step = generator.send(
                [Answer(a.case, a.probe.id, 0, a.tag, " ") for t in step.lanes for a in t.asks]
            )
    except StopIteration:
        pass
    name = unit.lanes[0].cases[0].id
    assert asked(last)[0] == ("vqa1", "", f"velm{name[1:]}")


def test_lanes_go_side_by_side() -> None:
    steps, unit = run("direct:2x1", 6)
    assert [len(lane.cases) for lane in unit.lanes] == [2, 2, 2]
    assert all(len(s.lanes) == 3 for s in steps)
