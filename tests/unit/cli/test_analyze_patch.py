"""`errata analyze --patch`: refused in one line before a model is loaded."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("gate", "--patch", "p"), "analysis 'gate' takes no patch. Leave out --patch."),
        (("drift", "--patch", "p"), "is not a patch"),
        (("drift", "--patch", "p", "--editor", "ft_l"), "Give one of them"),
        (("drift", "--with", "stepz=3"), "Did you mean 'steps'?"),
    ],
)
def test_patches_are_checked_first(errata, tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    ran = errata("analyze", arguments[0], "no-such-model", *arguments[1:], "--out", "o")
    assert ran.code == 2 and why in ran.err, ran.err
    assert len(ran.err.strip().splitlines()) == 1
