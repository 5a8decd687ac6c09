"""The command line, called inside a test's own process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from errata.cli import main


def command_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`errata ARGUMENTS`: a function that returns exit `code`, `out` and `err`."""

    def run(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code or 0, out=captured.out, err=captured.err)

    return run
