"""The docs say what the code does: errors, schemas, the README's table, and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import docs

from errata.core import errors

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _subclasses(cls: type) -> set[str]:
    return {c.__name__ for c in cls.__subclasses__()}.union(
        *(_subclasses(c) for c in cls.__subclasses__())
    )


def test_every_user_error_has_a_row_and_every_row_an_error():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    known = {n for n in _subclasses(errors.UserError) if hasattr(errors, n)}
    assert {name for name, *_ in rows} == known
    assert len(rows) == len(known)
    assert all(cell.strip() for row in rows for cell in row)


def test_schemas_are_current():
    made = docs.schemas()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"
    assert set((ROOT / "docs" / "schemas").glob("*.json")) == set(made)


def test_the_table_in_the_readme_is_current():
    for path, text in docs.readme().items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_in_the_docs_exist():
    """Every `errata <command>` that a page shows is one."""
    from errata.cli import app

    known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = set(re.findall(r"^\s*(?:\$ )?errata ([a-z][a-z-]+)", text, re.MULTILINE))
        assert shown <= known, f"{page.name}: {shown - known}"
