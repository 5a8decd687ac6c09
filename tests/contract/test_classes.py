"""What `errata.testing.class_checks` asks of a class of models, over the whole zoo."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.cli.shared.classes import stored
from errata.core.errors import BadBackbone, UserError
from errata.testing import class_checks as classes
from errata.testing import zoo

LOADED = [name for name, model in zoo.ZOO.items() if not model.refused]
REFUSED = [name for name, model in zoo.ZOO.items() if model.refused]
#: one that trains weights, one that locates and solves, one that adds neurons and a memory, one
#: with a trained scope
EDITORS = ("ft_l", "memit", "unike", "serac")
CHECKS = [f for name, f in vars(classes).items() if name.startswith("holds_")]


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_every_class(check, name: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    check(zoo.loaded(name), tmp_path)


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("editor", EDITORS)
def test_every_class_is_edited_saved_and_undone(editor: str, name: str, tmp_path: Path) -> None:
    unfit = zoo.ZOO[name].unfit.get(editor)
    if unfit is None:
        classes.try_editor(editor, zoo.loaded(name), tmp_path)
        return
    with pytest.raises(UserError, match=unfit) as e:
        classes.try_editor(editor, zoo.loaded(name), tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_edited_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(BadBackbone, match=zoo.ZOO[name].refused) as e:
        zoo.loaded(name)
    assert "\n" not in str(e.value)


def test_the_stored_table_says_what_is_tested() -> None:
    """`make docs` writes it, with all editors; here those that were tried above."""
    rows = {row["name"]: row for row in stored()["classes"]}
    assert list(rows) == list(zoo.ZOO), "run `make docs`"
    for name, row in rows.items():
        assert (row["status"] == "refused") == bool(zoo.ZOO[name].refused), row
        assert row["status"] in ("works", "partly", "refused"), row
        for editor in EDITORS if row["status"] != "refused" else ():
            assert bool(row["editors"][editor]) == (editor in zoo.ZOO[name].unfit), row
