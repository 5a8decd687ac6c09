"""Damaged inputs of every kind give one line and exit code 2, or work; `make fuzz` tries more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.run import Fuzzer


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    yield Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.filterwarnings("ignore:editor 'memit'")  # its value is not written, and it says so
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs(fuzzer: Fuzzer, kind: str, tmp_path: Path) -> None:
    for number in range(3):
        outcome = fuzzer.run(kind, number)
        assert not outcome.faults, (kind, number, outcome.faults, outcome.words, outcome.err)
