"""What libraries tell programmers does not reach a user; what errata tells does, as one line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from errata.cli import app, main
from errata.core.errors import Notice


def told(*words: str) -> None:
    with pytest.raises(SystemExit):
        main(["told", *words])


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that warns as a library does, and as errata does."""

    def warn() -> None:
        warnings.warn("`past_key_values` is deprecated", FutureWarning, stacklevel=2)
        warnings.warn("an odd file", UserWarning, stacklevel=1)
        warnings.warn("the gate\nreads the answer", Notice, stacklevel=2)

    monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
    app.command("told")(warn)


@pytest.mark.filterwarnings("default")
def test_a_warning_of_a_library_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    told()
    assert capsys.readouterr().err == "errata: the gate reads the answer\n"
    with pytest.warns(FutureWarning, match="past_key_values"):
        told("--debug")


@pytest.mark.trained
def test_an_edit_in_a_process_of_its_own_says_nothing_on_stderr(tmp_path: Path) -> None:
    """With the filters that a user has, not those of the tests."""
    patch = tmp_path / "patch"
    for words in (
        ["edit", "micro-vlm", "--editor", "ft_l", "--prompt", "p", "--target", "t", "--out", patch],
        ["ask", "micro-vlm", "--patch", patch, "a question"],
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "errata", *map(str, words)], capture_output=True, text=True
        )
        assert "Warning" not in ran.stderr and ran.returncode in (0, 3), ran.stderr
