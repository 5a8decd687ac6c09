"""The tutorials run, and print what their pages show."""

from __future__ import annotations

import sys

import pytest

from tools.site.execute import TUTORIALS, executed

pytestmark = pytest.mark.trained


def _printed(notebook) -> list[str]:
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c["outputs"]]
    return ["".join(o.get("text") or o["data"].get("text/plain", "")) for o in outputs]


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda p: p.stem)
@pytest.mark.skipif(sys.platform == "win32", reason="the kernel talks through a socket file")
def test_a_tutorial_prints_what_its_page_shows(path, monkeypatch):
    import nbformat

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(path, as_version=4)
    assert sum(c.cell_type == "code" and bool(c["outputs"]) for c in stored.cells) >= 3
    assert _printed(executed(path)) == _printed(stored)
