"""Every rule of tools/check_house.py finds what it is for. `make check` runs it on the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_house
from tools.check_house import Tree

FILES = {
    "circles": {
        "a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from errata import b\n",
        "b.py": "def f():\n    import errata.a\n",
    },
    "upward": {"low/a.py": "from errata.high.b import X\n", "high/b.py": "X = 1\n"},
    "repeated_classes": {
        "a.py": "class Row:\n    class Config: ...\n",
        "b.py": "class Row:\n    class Config: ...\n",
    },
    "siblings": {
        "editors/one.py": "from errata.editors.two import Two\n",
        "editors/two.py": "from errata.editors._shared import x\nclass Two: ...\n",
        "editors/_shared.py": "x = 1\n",
    },
    "foreign_attributes": {
        "a.py": "def f(patch):\n    patch.log = 1  # type: ignore[attr-defined]\n"
    },
    "literal_getattrs": {
        "a.py": "class Patch:\n    notes: int = 0\n",
        "b.py": 'def f(patch, config):\n    getattr(config, "notes", 0)\n'
        '    return getattr(patch, "notes", 0)\n',
    },
    "crowded_folders": {
        **{f"room/f{i}.py": "" for i in range(15)},
        **{f"editors/e{i}.py": "" for i in range(20)},
    },
}


def tree(folder: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = folder / "errata" / name
        for parent in (path.parent, folder / "errata"):
            parent.mkdir(parents=True, exist_ok=True)
            (parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
    return Tree(folder, ("editors",), [{"errata.high"}, {"errata.low"}])


@pytest.mark.parametrize("rule", check_house.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_finds_one_fault_in_a_tree_with_one(rule, tmp_path):
    assert len(list(rule(tree(tmp_path, FILES[rule.__name__])))) == 1


@pytest.mark.parametrize("rule", check_house.RULES, ids=lambda rule: rule.__name__)
def test_no_rule_finds_a_fault_in_a_clean_tree(rule, tmp_path):
    clean = {
        "low/a.py": "class A:\n    x: int = 0\n    def f(self):\n        self.y = 1\n",
        "high/b.py": "from errata.low.a import A\nclass B(A):\n    class Config: ...\n",
        "editors/one.py": "from errata.high.b import B\n",
    }
    assert list(rule(tree(tmp_path, clean))) == []
