"""What the user sees when something goes wrong: one line, and the right exit code."""

from __future__ import annotations

import pytest

from errata.cli import plugins
from errata.core.errors import BadSpec


def _raises(error: BaseException):
    def function(*_args, **_kwargs):
        raise error

    return function


def test_a_user_error_is_one_line_on_stderr_and_exits_2(errata, monkeypatch):
    monkeypatch.setattr(plugins, "rows_of", _raises(BadSpec("given x.\n  Known: y.")))
    ran = errata("list", "editors")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "errata: given x. Known: y.\n"


def test_anything_else_is_our_bug_and_exits_1(errata, monkeypatch):
    monkeypatch.setattr(plugins, "rows_of", _raises(ZeroDivisionError("division\nby zero")))
    ran = errata("list", "editors")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "this is a bug: ZeroDivisionError: division by zero" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "arguments", [("--debug", "list", "editors"), ("list", "editors", "--debug")]
)
@pytest.mark.parametrize(("error", "code"), [(BadSpec("x."), 2), (ValueError("y"), 1)])
def test_debug_anywhere_adds_the_traceback(errata, monkeypatch, arguments, error, code):
    monkeypatch.setattr(plugins, "rows_of", _raises(error))
    ran = errata(*arguments)
    assert ran.code == code
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("errata: ")


def test_ctrl_c_exits_130(errata, monkeypatch):
    monkeypatch.setattr(plugins, "rows_of", _raises(KeyboardInterrupt()))
    assert errata("list", "editors").code == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("list",),
        ("list", "editors", "--no-such-option"),
        ("bench", "micro-vlm", "--editor", "ft_l"),
        ("bench", "micro-vlm", "--limit", "0"),
    ],
)
def test_a_wrong_call_exits_2_without_a_traceback(errata, arguments):
    ran = errata(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_an_unknown_name_gets_a_hint(errata):
    ran = errata("show", "editor", "tpatchr")
    assert ran.code == 2
    assert "unknown editor 'tpatchr'. Did you mean 'tpatcher'?" in ran.err
    ran = errata("list", "editers")
    assert ran.code == 2
    assert "Did you mean 'editors'?" in ran.err


def test_color_is_not_written_to_a_pipe(errata):
    assert "\x1b" not in errata("show", "editor", "nothing").err


def test_version(errata):
    import errata as package

    ran = errata("--version")
    assert (ran.code, ran.out) == (0, f"errata {package.__version__}\n")
