"""The table of probe kinds, and kinds from outside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from errata.core.kinds import COLUMNS, KINDS, MEANS, ProbeKind, column_of, label
from errata.core.types import Case, Edit, Probe, Prompt, from_json, to_json

SPATIAL = ProbeKind("spatial", "Spatial", "Where the thing stands is answered with the target.")
PROBE = Probe("s", Prompt.of("Where is it?"), "spatial", reference="left", custom_kind=SPATIAL)


def test_means_stand_behind_what_they_contain() -> None:
    order = list(COLUMNS)
    assert MEANS["mean5"].kinds == tuple(order[:5]) and order[5] == "mean5"
    assert MEANS["mean6"].kinds == (*order[:5], "near_locality")
    assert order[order.index("near_locality") + 1] == "mean6" and order[-1] == "joint"
    assert all(c.heading and c.meaning and c.short_heading for c in COLUMNS.values())


def test_sides_and_outputs() -> None:
    assert [k for k, kind in KINDS.items() if kind.main] == ["reliability", "efficacy"]
    assert [k for k, kind in KINDS.items() if kind.drawn] == ["vqa", "i_locality"]
    assert not any(kind.expects_target and kind.keeps_answer for kind in KINDS.values())


def test_json_of_known_kinds_does_not_name_the_description() -> None:
    assert "custom_kind" not in to_json(Probe("r", Prompt.of("?"), "reliability"))


def test_a_custom_kind_survives_json() -> None:
    case = Case("c", Edit(Prompt.of("?"), "x"), (PROBE,))
    again = from_json(Case, to_json(case))
    assert again == case and again.probes[0].kind_info == SPATIAL


@pytest.mark.parametrize(
    "custom",
    [None, replace(SPATIAL, name="other"), replace(SPATIAL, family="edit")],
)
def test_an_unknown_kind_is_refused(custom: ProbeKind | None) -> None:
    with pytest.raises(ValueError, match="spatial"):
        replace(PROBE, custom_kind=custom)
    with pytest.raises(ValidationError, match="spatial"):
        from_json(Probe, {**to_json(PROBE), "custom_kind": custom and to_json(custom)})


def test_a_known_kind_cannot_be_described_again() -> None:
    with pytest.raises(ValueError, match="vqa"):
        Probe("v", Prompt.of("?"), "vqa", custom_kind=replace(SPATIAL, name="vqa"))


def test_columns_and_labels_of_kinds_outside_the_table() -> None:
    assert column_of("spatial", {"spatial": SPATIAL}).heading == "Spatial"
    assert column_of("gone_kind", {}).heading == "gone kind"
    assert label("gone_kind", "a_b") == "gone kind: a b"
