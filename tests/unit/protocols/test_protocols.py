"""Protocols against scripted answers: what is edited, what is asked, in which order."""

from __future__ import annotations

import subprocess
import sys

import pytest

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.measure.protocol import Ask, Protocol, Step, Unit
from errata.core.types import Answer, Case, Edit, Image, Probe, Prompt

PANEL = tuple(Probe(f"p{i}", Prompt.of(f"panel {i}"), "retention") for i in range(2))


def case(i: int, image: str | None = None, task: str = "vqa", states: tuple[str, ...] = ()) -> Case:
    prompt = Prompt.of(f"question {i}", Image(image or f"file{i}.png"))
    probes = (
        Probe("rel", prompt, "reliability", reference="new"),
        Probe("loc", Prompt.of(f"far {i}"), "t_locality", reference="gold"),
    )
    return Case(f"c{i}", Edit(prompt, "new", id=f"e{i}"), probes, task=task, states=states)


def protocol(name: str, argument: str = "") -> Protocol:
    found = registry.load("protocols", name)(argument)
    assert isinstance(found, Protocol)
    return found


def drive(p: Protocol, unit: Unit) -> list[Step]:
    """Runs the generator, answering every ask; the answers must come back in order."""
    steps: list[Step] = []
    generator = p.steps(unit, PANEL)
    try:
        step = next(generator)
        while True:
            steps.append(step)
            assert len(step.lanes) == len(unit.lanes)
            answers = [
                Answer(ask.case, ask.probe.id, len(steps) - 1, ask.tag)
                for turn in step.lanes
                for ask in turn.asks
            ]
            step = generator.send(answers)
    except StopIteration:
        return steps


def ids(asks: tuple[Ask, ...]) -> list[tuple[str, str, str]]:
    return [(a.case, a.probe.id, a.tag) for a in asks]


def test_names_and_defaults() -> None:
    known = ["batch", "cross_task", "direct", "memory", "one_step", "reasoning", "sequential"]
    assert registry.names("protocols") == known
    specs = [protocol(n).spec for n in registry.names("protocols")]
    assert specs == [
        *("batch:16", "cross_task:10", "direct:50x10", "memory:100x50", "one_step"),
        *("reasoning:prepend:50x10", "sequential:10"),
    ]
    assert protocol("sequential", "020").spec == "sequential:20"


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("one_step", "1"),
        ("batch", "0"),
        ("batch", "-3"),
        ("batch", "x"),
        ("batch", "²"),
        ("sequential", "1.5"),
        ("sequential", " 5"),
        ("cross_task", "5"),
        ("cross_task", "0"),
        ("memory", "9"),
        ("memory", "1001"),
        ("memory", "20x0"),
    ],
)
def test_bad_arguments(name: str, argument: str) -> None:
    with pytest.raises(BadSpec, match=name):
        protocol(name, argument)


def test_one_step() -> None:
    p = protocol("one_step")
    units = p.plan([case(i) for i in range(5)], rows=2, seed=0)
    assert [(u.id, [lane.id for lane in u.lanes]) for u in units] == [
        ("u000", ["l0000", "l0001"]),
        ("u001", ["l0002", "l0003"]),
        ("u002", ["l0004"]),
    ]
    (step,) = drive(p, units[0])
    assert step.on == "clean"
    assert [[e.id for e in t.edits] for t in step.lanes] == [["e0"], ["e1"]]
    assert ids(step.lanes[1].asks) == [("c1", "rel", ""), ("c1", "loc", "")]


def test_batch() -> None:
    p = protocol("batch", "3")
    (unit,) = p.plan([case(i) for i in range(8)], rows=4, seed=1)
    assert [lane.id for lane in unit.lanes] == ["l0000", "l0001"]
    (step,) = drive(p, unit)
    assert step.on == "clean"
    for lane, turn in zip(unit.lanes, step.lanes, strict=True):
        assert [e.id for e in turn.edits] == [c.edit.id for c in lane.cases]
        wanted = [(c.id, q, "") for c in lane.cases for q in ("rel", "loc")]
        assert ids(turn.asks) == [*wanted, *((f"panel/{lane.id}", f"p{i}", "") for i in range(2))]


def test_sequential() -> None:
    p = protocol("sequential", "3")
    (unit,) = p.plan([case(i) for i in range(7)], rows=8, seed=0)
    assert [len(lane.cases) for lane in unit.lanes] == [3, 3]
    steps = drive(p, unit)
    assert [s.on for s in steps] == ["previous"] * 3
    for lane_index, lane in enumerate(unit.lanes):
        turns = [s.lanes[lane_index] for s in steps]
        assert [[e.id for e in t.edits] for t in turns] == [[c.edit.id] for c in lane.cases]
        own = [[(c.id, "rel", "own"), (c.id, "loc", "own")] for c in lane.cases]
        assert [ids(t.asks) for t in turns[:2]] == own[:2]
        last = [(c.id, q, "") for c in lane.cases for q in ("rel", "loc")]
        panel = [(f"panel/{lane.id}", f"p{i}", "") for i in range(2)]
        assert ids(turns[2].asks) == [*own[2], *last, *panel]


def test_windows_depend_on_the_seed_only() -> None:
    cases = [case(i) for i in range(40)]
    p = protocol("sequential", "5")
    first, again, other = (p.plan(cases, rows=3, seed=s) for s in (4, 4, 5))
    assert first == again != other
    assert [len(u.lanes) for u in first] == [3, 3, 2]
    placed = [c.id for u in first for lane in u.lanes for c in lane.cases]
    assert sorted(placed) == sorted(c.id for c in cases)
    assert placed != [c.id for c in cases]
    rows = p.plan(cases, rows=8, seed=4)
    assert [lane for u in rows for lane in u.lanes] == [lane for u in first for lane in u.lanes]


def test_batch_and_sequential_edit_the_same_sets() -> None:
    cases = [case(i) for i in range(12)]
    sets = [
        [
            {c.id for c in lane.cases}
            for u in protocol(n, "4").plan(cases, rows=9, seed=2)
            for lane in u.lanes
        ]
        for n in ("batch", "sequential")
    ]
    assert sets[0] == sets[1]


def test_an_image_is_edited_once_per_window() -> None:
    # Consecutive pairs share an image, as in E-VQA: 20 cases, 10 images, windows of 5.
    cases = [case(i, image=f"shared{i // 2}.png") for i in range(20)]
    units = protocol("sequential", "5").plan(cases, rows=1, seed=0)
    assert len(units) == 4
    for unit in units:
        images = [c.edit.prompt.images[0].uri for c in unit.lanes[0].cases]
        assert len(set(images)) == 5


def test_a_frequent_image_limits_the_windows() -> None:
    # 11 of one image and 9 others: only one window of 10 can be filled without repeating it.
    cases = [case(i, image="same.png" if i < 11 else None) for i in range(20)]
    units = protocol("sequential", "10").plan(cases, rows=4, seed=0)
    assert [len(u.lanes) for u in units] == [1]


def test_images_are_compared_by_hash() -> None:
    def with_image(i: int) -> Case:
        c = case(i)
        prompt = Prompt.of("q", Image(f"copy{i}.png", sha256="same"))
        return Case(c.id, Edit(prompt, "new"), c.probes)

    with pytest.raises(BadSpec, match="different images"):
        protocol("batch", "2").plan([with_image(0), with_image(1)], rows=1, seed=0)


def test_text_only_edits_share_no_image() -> None:
    cases = [Case(f"c{i}", Edit(Prompt.of("q"), "new"), case(i).probes) for i in range(4)]
    (unit,) = protocol("sequential", "4").plan(cases, rows=1, seed=0)
    assert len(unit.lanes[0].cases) == 4


def test_too_few_cases() -> None:
    with pytest.raises(BadSpec, match=r"sequential:10.*3 cases are planned"):
        protocol("sequential").plan([case(i) for i in range(3)], rows=1, seed=0)
    with pytest.raises(BadSpec, match=r"0 of task caption"):
        protocol("cross_task").plan([case(i) for i in range(30)], rows=1, seed=0)


def test_cross_task() -> None:
    p = protocol("cross_task", "4")
    cases = [case(i, task=("vqa", "vqa", "caption", "other")[i % 4]) for i in range(28)]
    units = p.plan(cases, rows=2, seed=3)
    lanes = [lane for u in units for lane in u.lanes]
    assert len(lanes) == 3  # 14 vqa and 7 caption cases: three windows of 2 + 2
    assert all(
        sorted(c.task for c in lane.cases) == ["caption"] * 2 + ["vqa"] * 2 for lane in lanes
    )
    assert len({tuple(c.task for c in lane.cases) for lane in lanes}) > 1
    steps = drive(p, units[0])
    assert [s.on for s in steps] == ["previous"] * 4


def test_no_torch() -> None:
    code = (
        "import sys; from errata.core import registry\n"
        "for kind in ('protocols', 'metrics'):\n"
        "    for name in registry.names(kind): registry.load(kind, name)\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_memory_holds_all_edits_before_any_question() -> None:
    p = protocol("memory", "10x4")
    units = p.plan([case(i) for i in range(25)], rows=16, seed=0)
    assert [[len(lane.cases) for lane in u.lanes] for u in units] == [[10], [10]]
    steps = drive(p, units[0])
    assert [s.on for s in steps] == ["clean", "previous", "previous"]
    assert [len(s.lanes[0].edits) for s in steps] == [4, 4, 2]
    assert [e.id for s in steps for e in s.lanes[0].edits] == [
        c.edit.id for c in units[0].lanes[0].cases
    ]
    assert [bool(s.lanes[0].asks) for s in steps] == [False, False, True]
    wanted = [(c.id, q, "") for c in units[0].lanes[0].cases for q in ("rel", "loc")]
    assert ids(steps[-1].lanes[0].asks) == [
        *wanted,
        *(("panel/l0000", f"p{i}", "") for i in (0, 1)),
    ]
    assert p.spec == "memory:10x4" and protocol("memory", "30").spec == "memory:30x30"


@pytest.mark.parametrize(("name", "argument"), [("sequential", "10"), ("memory", "10")])
def test_edits_that_contradict_each_other_share_no_sequence(name: str, argument: str) -> None:
    """24 cases about 12 facts, two pictures each; two state a fact of another one too."""
    cases = [case(i, states=(f"thing{i % 12}/colour",)) for i in range(24)]
    cases[0] = case(0, states=("thing0/caption", "thing5/colour"))
    units = protocol(name, argument).plan(cases, rows=4, seed=0)
    lanes = [lane for u in units for lane in u.lanes]
    assert len(lanes) == 2
    for lane in lanes:
        facts = [fact for c in lane.cases for fact in c.states]
        assert len(facts) == len(set(facts))


def test_one_thing_may_have_several_facts_edited() -> None:
    cases = [
        Case(f"c{i}", Edit(Prompt.of(f"q{i}"), "new", "Ada"), case(i).probes, states=(f"Ada/{i}",))
        for i in range(10)
    ]
    (unit,) = protocol("memory", "10").plan(cases, rows=4, seed=0)
    assert len(unit.lanes[0].cases) == 10
    plain = [Case(c.id, c.edit, c.probes) for c in cases]
    with pytest.raises(BadSpec, match="subjects"):
        protocol("memory", "10").plan(plain, rows=4, seed=0)
