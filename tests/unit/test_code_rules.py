"""Rules about the code that no linter has: lengths, module state, errors turned into numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "tools", "experiments", "perf")
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
SOURCES = [p for p in FILES if p.is_relative_to(ROOT / "src")]
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{_name(path)} has {lines} lines"
    for node in ast.walk(_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{_name(path)}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_modules_keep_no_state(path):
    tree = _tree(path)
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Global)]
    assert not named, f"{_name(path)}: global {named[0].names}"
    assert not list(_changed_constants(tree)), f"{_name(path)}: {list(_changed_constants(tree))}"


def _changed_constants(tree: ast.Module) -> Iterator[str]:
    """Module-level lists, dicts and sets that some function changes."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, MUTABLE):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            target = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
                target = node.value
            elif isinstance(node, ast.Attribute) and node.attr in (
                *("append", "extend", "insert", "add", "update", "setdefault"),
                *("pop", "popitem", "clear", "remove", "discard"),
            ):
                target = node.value
            if isinstance(target, ast.Name) and target.id in names:
                yield f"{target.id} is changed in {function.name}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_debugger_is_left_in(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("breakpoint", "pdb.set_trace"), f"{_name(path)}: {called}"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_failure_never_becomes_a_number(path):
    """`except Exception` (or barer) must raise again or leave; it may not go on with a value."""
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "" if node.type is None else ast.unparse(node.type)
        if caught not in ("", "Exception", "BaseException"):
            continue
        values = [
            n.value
            for n in ast.walk(node)
            if isinstance(n, (ast.Return, ast.Assign)) and isinstance(n.value, ast.Constant)
        ]
        numbers = [v for v in values if isinstance(v.value, (int, float))]
        assert not numbers, f"{_name(path)}, line {node.lineno}"
