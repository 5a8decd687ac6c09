"""Plug-ins are found by name; a renamed one also by the name that saved files hold."""

from __future__ import annotations

import pytest

from errata.core import registry
from errata.core.errors import UnknownName


def test_a_renamed_plugin_is_found_by_its_former_name() -> None:
    for (kind, former), name in registry.RENAMED.items():
        assert registry.load(kind, former) is registry.load(kind, name)
        assert registry.summary(kind, former) == registry.summary(kind, name)
        assert former not in registry.names(kind) and name in registry.names(kind)


def test_verdicts_of_the_renamed_judge_keep_its_former_name() -> None:
    """Verdicts of older runs and of new ones count in one score."""
    assert registry.load("judges", "rendered_shapes")().identity == "microworld@2"
    assert registry.load("judges", "microworld")().identity == "microworld@2"


def test_a_former_name_is_one_of_its_own_kind() -> None:
    with pytest.raises(UnknownName, match="unknown metric 'microworld'"):
        registry.load("metrics", "microworld")
