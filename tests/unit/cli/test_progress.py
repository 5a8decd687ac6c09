"""Progress without a terminal: few lines, never none."""

from __future__ import annotations

from errata.cli.shared.progress import ProgressLines, duration, reporting


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


def test_a_line_says_how_long_the_rest_takes(capsys):
    now = iter([0.0, 20.0, 40.0, 50.0])
    lines = ProgressLines("", clock=lambda: next(now))
    for done in (4, 6, 8, 10):  # a run that was resumed at 4
        lines("cases", done, 10)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "cases 4/10",
        "cases 6/10, about 40 s left",  # 2 in 20 s, 4 to go
        "cases 8/10, about 20 s left",
        "cases 10/10",
    ]
    assert [duration(s) for s in (0.2, 200, 7200)] == ["about 1 s", "about 3 min", "about 2.0 h"]
