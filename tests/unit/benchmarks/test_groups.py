"""Every group of probes that a bundled benchmark makes has a meaning that a report can show."""

from __future__ import annotations

import pytest

from errata.contract.benchmarks import _cases
from errata.core import registry


@pytest.mark.parametrize("name", registry.names("benchmarks"))
def test_every_group_has_a_meaning(name: str) -> None:
    cases = _cases(registry.load("benchmarks", name)())
    probes = [p for c in cases for p in c.probes if p.group]
    without = {(p.kind, p.group) for p in probes if p.group not in dict(p.kind_info.groups)}
    assert not without, f"say what they are in core/kinds.py: {sorted(without)}"
