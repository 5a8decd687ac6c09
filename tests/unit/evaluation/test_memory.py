"""The peak of an edit is its own, not that of the process before it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from errata.core.model import memory
from errata.core.model.memory import measured_peak, resident_mb

pytestmark = pytest.mark.skipif(not memory.STATM.exists(), reason="the system has no /proc")


def hold(mb: int) -> None:
    block = np.ones(mb * 2**17)  # 8 bytes each
    time.sleep(5 * memory.EVERY)
    del block


def test_what_was_used_earlier_does_not_count() -> None:
    hold(150)
    start = resident_mb()
    with measured_peak() as small:
        hold(40)
    with measured_peak() as large:
        hold(120)
    assert small.mb is not None and large.mb is not None
    assert 20 < small.mb - start < 120
    assert 90 < large.mb - start < 200


def test_without_proc_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATM", memory.STATM / "missing")
    with measured_peak() as peak:
        pass
    assert peak.mb is None
