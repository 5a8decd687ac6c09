"""A number format that the processor is slow in is named when a model is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

import errata
from errata.core.errors import Notice
from errata.core.model import slow_dtype


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor on which a product in half precision takes 50 times as long."""
    seconds = {torch.float32: 0.001, torch.bfloat16: 0.05}
    monkeypatch.setattr(slow_dtype, "_seconds", lambda dtype: seconds[dtype])
    monkeypatch.setattr(slow_dtype, "LARGE", 1)
    slow_dtype.slowness.cache_clear()
    yield
    slow_dtype.slowness.cache_clear()


def test_a_slow_format_is_named(slow: None) -> None:
    with pytest.warns(Notice, match=r"bfloat16 .* 50 times slower than .*--dtype float32"):
        errata.load("micro-vlm", dtype="bfloat16")


def test_float32_is_never_slow(slow: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        errata.load("micro-vlm", dtype="float32")


def test_a_small_model_is_worth_no_word(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_dtype, "LARGE", 10**9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        errata.load("micro-vlm", dtype="bfloat16")
