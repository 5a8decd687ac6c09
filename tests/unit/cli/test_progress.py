"""Progress without a terminal: few lines, never none."""

from __future__ import annotations

from errata.cli.shared.progress import ProgressLines, reporting


def test_plain_lines_are_few(capsys):
    now = iter(range(100))
    lines = ProgressLines("ft_l: ", clock=lambda: float(next(now)))
    for done in range(26):
        lines("editing", done, 25)
    lines("scoring", 0, 1)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "ft_l: editing 0/25"
    assert said[-2:] == ["ft_l: editing 25/25", "ft_l: scoring 0/1"]
    assert len(said) == 5


def test_without_a_terminal_lines_are_used():
    with reporting("x") as progress:
        assert isinstance(progress, ProgressLines)
