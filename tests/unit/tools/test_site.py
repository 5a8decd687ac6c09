"""The generated parts of the documentation site. `make site` builds and checks the whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from errata.core import registry
from tools.site import commands, links, measured, notebooks, reference
from tools.site.formatted import from_docstring, table

ROOT = Path(__file__).parents[3]
KINDS = tuple(reference.TITLES)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_about_what_there_is(kind):
    written = set(reference.words(kind)) - {"index"}
    assert set(registry.names(kind)) <= written <= set(_named(kind))
    assert len(reference.words(kind)["index"].split()) > 15


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_has_text_to_read(kind):
    """Words of sentences, beside tables and commands: those by hand and those of the file."""
    for path, text in _pages(kind).items():
        prose = re.sub(r"```[^`]*```|^[|#].*$|`[^`]*`", "", text, flags=re.M)
        assert len(prose.split()) >= 60, path


def test_the_paths_are_those_of_the_pages():
    names = {n for kind in KINDS for n in _named(kind)}
    assert {Path(p).stem for p in reference.paths()} == {*names, "index", "commands"}


def _named(kind: str) -> list[str]:
    return [*registry.names(kind), *reference._models(kind)]


def _pages(kind: str) -> dict[str, str]:
    return {n: reference._page(kind, n) for n in registry.names(kind)}


def test_a_page_shows_settings_presets_and_what_was_measured():
    page = reference._page("editors", "ft_l")
    assert "| `steps` | `int` | `25` | updates at most. |" in page
    assert "`ft_l:paper`" in page and "errata edit MODEL --editor ft_l" in page
    row = next(r for r in measured.tables() if r.csv == "vqa-one_step").of("ft_l")[1]
    assert row["editor"] == "ft_l" and f"| ft_l | {row['n']} | {row['reliability']}" in page
    assert "../../results/single-edits.md#vqa-one_step-exact" in page


def test_rows_of_another_plugin_are_not_taken():
    rows = [{"run": name} for name in ("memit", "memit-2", "memit2", "vqa-one_step-memit")]
    one = measured.Measured("p", "T", "H", "c", rows)
    assert [r["run"] for r in one.of("memit")] == ["memit", "memit-2", "vqa-one_step-memit"]
    assert one.of("mem") == []


def test_the_page_of_commands_names_all_of_them():
    from errata.cli import app

    page = commands.page()
    assert all(f"\n## errata {c.name}\n" in page for c in app.registered_commands)
    assert "## errata patch merge" in page and "`--limit`" in page


def test_a_link_that_leaves_docs_leads_to_a_copy():
    text = "[a](../src/errata/benchmarks/facts/schema.json) [b](errors.md#x) [c](https://e.org)"
    found = links.rewritten(text, "facts.md", ROOT)
    assert "(files/src/errata/benchmarks/facts/schema.json)" in found
    assert "(errors.md#x)" in found and "(https://e.org)" in found
    changed = links.rewritten("[d](docs/errors.md)", "project/CONTRIBUTING.md", ROOT)
    assert changed == "[d](../errors.md)"
    assert ROOT / "src/errata/benchmarks/facts/schema.json" in links.outside(ROOT)


def test_a_notebook_becomes_a_page(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {
            "cell_type": "code",
            "source": ["1 + 1"],
            "outputs": [
                {"output_type": "stream", "text": ["printed\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
                {"output_type": "display_data", "data": {"image/png": "QUJD\n"}},
            ],
        },
    ]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page = notebooks.page(path)
    assert page.startswith("# Title\nwords\n\n[This page as a notebook](n.ipynb)")
    assert "```python\n1 + 1\n```\n\n```text\nprinted\n```\n\n```text\n2\n```" in page
    assert 'src="data:image/png;base64,QUJD"' in page


def test_text_of_docstrings_and_tables_is_escaped():
    assert from_docstring("Two things:\n- <one>\n- two") == "Two things:\n\n- &lt;one>\n- two"
    assert table(["a"], [["x | y `u | v`"]]).splitlines()[-1] == "| x \\| y `u | v` |"
