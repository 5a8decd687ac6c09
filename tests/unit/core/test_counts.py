"""Numbers with their noun."""

from __future__ import annotations

import pytest

from errata.core.formats.counts import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "edit", "0 edits"),
        (1, "edit", "1 edit"),
        (2, "edit", "2 edits"),
        (1, "patch", "1 patch"),
        (3, "patch", "3 patches"),
        (1, "known fact", "1 known fact"),
    ],
)
def test_one_has_no_plural(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
