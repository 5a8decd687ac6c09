"""What must hold for every model that draws, on tiny pipelines of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.testing.drawing import checks
from errata.testing.drawing.pipelines import PIPELINES, wrapped

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda f: f.__name__)
def test_every_pipeline(check, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(wrapped(name), tmp_path)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("check", checks.REACH, ids=lambda f: f.__name__)
def test_what_an_edit_reaches(check, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(wrapped(name), tmp_path, PIPELINES[name].reads)
