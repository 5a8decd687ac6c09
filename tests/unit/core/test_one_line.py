"""What a library says becomes part of a message: one line, whole words, no full stop."""

from __future__ import annotations

import pytest

from errata.core.errors import one_line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("a\n b.\n"), "a b"),
        (ValueError(), "ValueError"),
        (KeyError("gone"), "'gone'"),
        (ValueError("some words. that are, long"), "some words. that ..."),
        (ValueError("x" * 40), "x" * 20 + " ..."),
        (ValueError("exactly twenty lette"), "exactly twenty lette"),
    ],
)
def test_one_line(error: Exception, says: str) -> None:
    assert one_line(error, most=20) == says
