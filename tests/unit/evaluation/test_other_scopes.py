"""Questions of one edit that another edit of its sequence rightly changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.protocol import Lane, Unit
from errata.core.types import Answer, Case, Edit, Probe, Prompt, from_json, to_json
from errata.evaluation.other_scopes import in_other_scopes
from errata.evaluation.plan import Selection, make_plan, plan_json, protocol_of
from errata.evaluation.score import score_run

MakeRun = Callable[..., Path]


def case(name: str, states: str, asks: dict[str, str]) -> Case:
    """An edit of one fact, with near questions and one that follows, each about another fact."""
    prompt = Prompt.of(f"what is {name}?")
    probes = [Probe("rel", prompt, "reliability", reference="new", depends_on=(states,))]
    for kind, fact in asks.items():
        probes.append(Probe(kind, Prompt.of(fact), kind, reference="x", depends_on=(fact,)))
    return Case(name, Edit(prompt, "new"), tuple(probes), states=(states,))


CASES = (
    case("a", "ring/colour", {"near_locality": "disc/colour", "portability": "ring/caption"}),
    case("b", "disc/colour", {"near_locality": "ring/size", "t_locality": "town/country"}),
    case("c", "ring/caption", {"near_locality": "ring/caption"}),
    case("d", "ring/colour", {}),
)


def test_what_another_edit_states_is_found_and_nothing_else() -> None:
    unit = Unit("u0", (Lane("l0", CASES[:3]), Lane("l1", CASES[3:])))
    found = {skip.id: skip.reason for skip in in_other_scopes([unit])}
    assert set(found) == {"a/near_locality", "a/portability"}
    assert "'b'" in found["a/near_locality"] and "'c'" in found["a/portability"]
    alone = [Unit("u0", tuple(Lane(c.id, (c,)) for c in CASES))]
    assert in_other_scopes(alone) == (), "edits that do not meet"


def test_the_plan_counts_them_and_keeps_contradictions_apart() -> None:
    before = tuple(Answer(c.id, p.id, text="old") for c in CASES for p in c.probes)
    selection = Selection(CASES, (), before, (), "")
    spec = BenchmarkSpec("microworld", ("vqa",))
    plan = make_plan(selection, spec, protocol_of("sequential:2"), rows=4, seed=0)
    for unit in plan.units:
        for lane in unit.lanes:
            assert not {"a", "d"} <= {c.id for c in lane.cases}, "both state the ring's colour"
    together = {c.id for u in plan.units for lane in u.lanes for c in lane.cases if len(lane.cases)}
    assert together == {"a", "b", "c", "d"}
    for skip in plan.dropped:
        assert "in the scope of another edit" in skip.reason
    assert [c["states"] for c in plan_json(plan)["cases"]] == [list(c.states) for c in CASES]


def test_what_declares_nothing_is_written_as_before() -> None:
    plain = Case("a", Edit(Prompt.of("q"), "new"), (Probe("rel", Prompt.of("q"), "reliability"),))
    data = to_json(plain)
    assert "states" not in data and "depends_on" not in data["probes"][0]
    for one in (plain, *CASES):
        assert from_json(Case, json.loads(json.dumps(to_json(one)))) == one


def test_they_are_asked_counted_and_not_scored(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    whole = score_run(run)
    plan = json.loads((run / "plan.json").read_text())
    plan["dropped"] = [{"id": "a/n1b", "reason": "lies in the scope of another edit"}]
    (run / "plan.json").write_text(json.dumps(plan))
    scores = score_run(run)
    assert scores["in_other_scope"] == {"near_locality/near1": 1}
    assert "in_other_scope" not in whole
    key = "near_locality/near1.exact"
    # a: one of two kept before, now the only one
    assert (whole["metrics"][key]["value"], scores["metrics"][key]["value"]) == (0.625, 0.75)
    assert scores["metrics"]["reliability.exact"] == whole["metrics"]["reliability.exact"]


def test_the_cases_of_one_memory_are_its_units(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    plan = json.loads((run / "plan.json").read_text())
    plan["over"] = "cases"
    (run / "plan.json").write_text(json.dumps(plan))
    scores = score_run(run)
    assert scores["intervals"]["over"] == "cases"
    entry = scores["metrics"]["reliability.exact"]
    assert (entry["value"], entry["n"], entry["units"]) == (0.5, 4, 4)
    assert entry["ci95"][0] < 0.1 and entry["ci95"][1] > 0.9
