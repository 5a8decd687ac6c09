"""Contract of a protocol: every planned case is edited once, and all its probes are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from errata.contract._names import named
from errata.core.kinds import KINDS
from errata.core.measure.protocol import Protocol, Step, Unit
from errata.core.types import Answer, Case, Edit, JudgeQuestion, Probe, Prompt, StatedFact


def checks(cls: type[Protocol]) -> list[tuple[str, Callable[[], None]]]:
    return [(named(f), partial(f, cls())) for n, f in globals().items() if n.startswith("holds_")]


VIEW = JudgeQuestion("?", "!", "x")


def cases(count: int = 120) -> list[Case]:
    """Cases of two tasks with a probe of each kind but `retention`, which only the panel has."""
    kinds = [kind for kind in KINDS if kind != "retention"]
    planned = []
    for i in range(count):
        prompt = Prompt.of(f"question {i}", f"image-{i}.png")
        probes = tuple(
            Probe(
                f"p{k}",
                prompt.with_text(f"{k} {i}"),
                kind,
                reference="x",
                view=VIEW if KINDS[kind].drawn else None,
                aids=StatedFact(Prompt.of(f"drawn as x {i}"), f"{i} is x")
                if kind == "vqa"
                else None,
            )
            for k, kind in enumerate(kinds)
        )
        planned.append(
            Case(
                f"c{i}",
                Edit(prompt, f"answer {i}", id=f"c{i}"),
                probes,
                task=("vqa", "caption")[i % 2],
            )
        )
    return planned


PANEL = (Probe("panel-0", Prompt.of("?"), "retention", reference="y"),)


def play(protocol: Protocol, unit: Unit) -> list[Step]:
    """All steps of a unit, every ask answered."""
    steps = []
    generator = protocol.steps(unit, PANEL)
    try:
        step = next(generator)
        while True:
            steps.append(step)
            step = generator.send([Answer(a.case, a.probe.id) for t in step.lanes for a in t.asks])
    except StopIteration:
        return steps


def holds_repeatable(protocol: Protocol) -> None:
    """The same cases, rows and seed give the same units."""
    plans = [protocol.plan(cases(), rows=4, seed=5) for _ in range(2)]
    assert plans[0] == plans[1] and plans[0]


def holds_rows(protocol: Protocol) -> None:
    """No unit has more lanes than rows, and no case is planned twice."""
    units = protocol.plan(cases(), rows=4, seed=0)
    assert all(1 <= len(u.lanes) <= 4 for u in units)
    planned = Counter(c.id for u in units for lane in u.lanes for c in lane.cases)
    assert planned and max(planned.values()) == 1, "a case is planned twice"


def holds_edited_once(protocol: Protocol) -> None:
    """Every planned case is edited exactly once, in its own lane."""
    for unit in protocol.plan(cases(), rows=4, seed=0):
        steps = play(protocol, unit)
        for i, lane in enumerate(unit.lanes):
            edits = [e.id for s in steps for e in s.lanes[i].edits]
            assert sorted(edits) == sorted(c.edit.id for c in lane.cases), (edits, lane.id)


def holds_asked_once(protocol: Protocol) -> None:
    """Every probe of every planned case is asked exactly once without a tag."""
    for unit in protocol.plan(cases(), rows=4, seed=0):
        steps = play(protocol, unit)
        asked = Counter(
            (a.case, a.probe.id) for s in steps for t in s.lanes for a in t.asks if not a.tag
        )
        for lane in unit.lanes:
            for case in lane.cases:
                assert all(asked[case.id, p.id] == 1 for p in case.probes), case.id


def holds_lanes(protocol: Protocol) -> None:
    """Every step has one turn per lane."""
    for unit in protocol.plan(cases(), rows=4, seed=0):
        steps = play(protocol, unit)
        assert all(len(s.lanes) == len(unit.lanes) for s in steps)


def holds_controls(protocol: Protocol) -> None:
    """Controls are asked before any edit, scored probes after it."""
    for unit in protocol.plan(cases(), rows=4, seed=0):
        edited = False
        for step in play(protocol, unit):
            edited = edited or any(t.edits for t in step.lanes)
            tags = {a.tag for t in step.lanes for a in t.asks}
            assert not tags & ({"", "own"} if not edited else {"pre", "oracle", "ceiling"}), tags


def holds_spec(protocol: Protocol) -> None:
    """The canonical text (`spec`) gives the same protocol again."""
    name, _, argument = protocol.spec.partition(":")
    assert name == protocol.name and type(protocol)(argument).spec == protocol.spec
