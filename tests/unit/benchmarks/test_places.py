"""The bundled benchmark of places: its tables agree, and every edit changes what follows."""

from __future__ import annotations

from collections import Counter

import pytest

from errata.benchmarks.places import FOLLOWS, Places, _cities, _countries, _far_questions
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [
        c for s in Places.splits for c in Places().load(BenchmarkSpec.parse(f"places@{s}")).cases
    ]


def test_the_tables_agree() -> None:
    assert Places().audit()["cities without a country"] == []
    assert {name for _, name in _cities()} <= set(_countries())
    assert max(Counter(city for city, _ in _cities()).values()) == 1
    assert all(right != wrong for _, right, wrong in _far_questions())


def test_every_city_is_in_one_split(cases: list[Case]) -> None:
    assert len(cases) == len({c.edit.subject for c in cases}) == len(_cities())


def test_every_consequence_of_an_edit_is_new(cases: list[Case]) -> None:
    for case in cases:
        asked = {p.id: p for p in case.probes if p.kind == "portability"}
        assert asked and set(asked) <= {f"portability/{column}" for column in FOLLOWS}
        new, true = (_countries()[name] for name in (case.edit.target, case.edit.old))
        for id, probe in asked.items():
            column = id.partition("/")[2]
            assert probe.reference == getattr(new, column) != getattr(true, column)
            assert probe.contrast == getattr(true, column)
            assert probe.hop is not None and probe.hop.reference == probe.reference


def test_locality_asks_about_other_things(cases: list[Case]) -> None:
    for case in cases:
        assert case.edit.subject is not None
        kept = [p for p in case.probes if p.kind in ("near_locality", "t_locality")]
        assert len({p.prompt for p in kept}) == len(kept) >= 3
        assert all(case.edit.subject not in p.prompt.text for p in kept)
        assert all(p.reference not in (case.edit.target, p.contrast) for p in kept)
