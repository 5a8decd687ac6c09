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


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("patch.json", 2),
        ("manifest.json", 2),
        ("state.json", 2),
        ("attention.json", 2),
        ("attention-means.csv", 2),
        ("notes.txt", 0),
    ],
)
def test_an_analysis_replaces_only_an_analysis(errata, tmp_path, file, code):
    (tmp_path / file).write_text("{}")
    look = ("analyze", "attention", "micro-vlm", "--limit", 1, "--out", tmp_path)
    ran = errata(*look)
    assert ran.code == code and (tmp_path / file).read_text() == "{}", ran.err
    if code:
        assert ran.err.count("\n") == 1 and str(tmp_path) in ran.err
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [file]
    else:
        assert errata(*look).code == 0  # its own is replaced
