"""ft_l: the limit of a weight's change, ROME's FT-L."""

from __future__ import annotations

from typing import Any

import pytest

import errata
from errata.core.errors import BadSpec
from errata.core.types import Edit, Prompt
from tests import tiny

EDITS = [
    Edit(Prompt.of("What is the thing?"), "red", id="a"),
    Edit(Prompt.of("Which shape?"), "blue ring", id="b"),
]


def largest(**settings: Any) -> list[float]:
    """The largest change of a weight by each edit, in float32."""
    editor = errata.editor("ft_l", steps=8, stop_loss=0.0, **settings)
    patches = editor.edit_rows(tiny.shared("llava"), EDITS)
    changes = []
    for patch in (one.patch for one in patches):
        (site,) = patch.names
        changes.append(float(patch.part(site)["dense"].abs().max()))
    return changes


@pytest.mark.parametrize("lr", [1e-2, "auto"])
def test_no_weight_changes_by_more_than_the_limit(lr: float | str) -> None:
    limit = 5e-4
    assert min(largest(lr=lr)) > 2 * limit  # the steps would go further
    assert largest(lr=lr, max_change=limit) == pytest.approx([limit, limit])


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    assert largest(lr=1e-3, max_change=10.0) == largest(lr=1e-3)


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(BadSpec) as caught:
        errata.editor("ft_l", max_change=value)
    assert "max_change" in str(caught.value) and "\n" not in str(caught.value)


def test_romes_presets_are_limited_and_the_others_are_not() -> None:
    presets = errata.editor("ft_l").presets
    limits = {n: errata.editor("ft_l", preset=n).config.max_change for n in presets}
    assert {n: v for n, v in limits.items() if v} == {"rome-gpt2-xl": 5e-4, "rome-gpt-j": 5e-5}
