"""A device or a pipe in the place of a file is refused by every reader: it has no end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from errata.algorithms.locate_then_edit import corpus
from errata.backbones import _folders
from errata.benchmarks.facts import rows as facts
from errata.benchmarks.mmedit import rows as mmedit
from errata.benchmarks.unike_umm import published
from errata.benchmarks.unike_umm.build import rows as rewrites
from errata.core import files
from errata.core.errors import UserError
from errata.core.formats import run_files
from errata.evaluation import cache

READERS: dict[str, Callable[[Path], Any]] = {
    "read_bytes": files.read_bytes,
    "read_json": files.read_json,
    "own facts": facts.read_bytes,
    "mmedit": lambda path: mmedit.file_sha256(path),
    "published records": published.read,
    "rows of CounterFact": rewrites.read_rows,
    "a corpus": corpus.from_file,
    "a model's JSON": _folders.read_object,
    "a model's folder": lambda path: _folders.check(path.parent),
    "the hash of a run's file": lambda path: run_files.write_scores(path.parent, {}),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_device_is_refused(reader: str, tmp_path: Path) -> None:
    device = tmp_path / ("answers.jsonl" if "run" in reader else "config.json")
    device.symlink_to("/dev/zero")
    with pytest.raises(UserError) as caught:
        READERS[reader](device)
    assert "\n" not in str(caught.value) and str(device) in str(caught.value)


def test_a_device_in_the_cache_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "k.json.gz").symlink_to("/dev/zero")
    assert cache.load("k") is None
