"""Rules about the whole tree that no linter has; `make check` runs it.

python tools/check_house.py     exits 1 and prints one line for everything that is wrong

1. No import circle between modules, and none that runs up the layers of pyproject.toml; imports
   for type checking included.
2. No class name stands twice in src/ (nested `Config` classes apart, each editor has one).
3. A plug-in never imports another plug-in of its kind; private modules of its folder are shared
   (shapes of patches, and families of models, are built on each other and may).
4. No `type: ignore` excuses an attribute that is set on somebody else's object.
5. No getattr with a literal name that one of our own classes defines.
6. No folder of src/errata holds more than 14 files that are no plug-ins.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MOST_FILES = 14
BUILT_ON_EACH_OTHER = ("patches", "backbones")


class Tree:
    """The modules below `source` by dotted name, parsed once."""

    def __init__(
        self, source: Path, plugin_kinds: Sequence[str] = (), layers: Sequence[Set[str]] = ()
    ) -> None:
        self.source, self.plugin_kinds, self.layers = source, plugin_kinds, layers
        self.paths = {self._name(p): p for p in sorted(source.rglob("*.py"))}
        self.texts = {name: p.read_text(encoding="utf-8") for name, p in self.paths.items()}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.source).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Module -> the modules of the tree that it imports, anywhere in its text."""
        return {name: set(self._imports(name)) - {name} for name in self.trees}

    def _imports(self, name: str) -> Iterator[str]:
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names if a.name in self.trees)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in self.trees:
                        yield inner
                    elif node.module in self.trees:
                        yield node.module

    def plugin_of(self, name: str) -> tuple[str, str] | None:
        """(kind, plug-in) that a module belongs to; None for shared and for other modules."""
        parts = name.split(".")
        if len(parts) < 3 or parts[1] not in self.plugin_kinds or parts[2].startswith("_"):
            return None
        return parts[1], parts[2]


def circles(tree: Tree) -> Iterator[str]:
    """Import circles, one at a time: the first that is found."""
    try:
        TopologicalSorter(tree.imports).prepare()
    except CycleError as e:
        yield "import circle: " + " -> ".join(e.args[1])


def upward(tree: Tree) -> Iterator[str]:
    """Imports of a package that stands higher in the list of layers."""
    height = {name: n for n, layer in enumerate(reversed(tree.layers)) for name in layer}
    for name, targets in tree.imports.items():
        here = height.get(".".join(name.split(".")[:2]))
        for target in sorted(targets):
            there = height.get(".".join(target.split(".")[:2]))
            if here is not None and there is not None and there > here:
                yield f"{name} imports {target}, which lies above it"


def repeated_classes(tree: Tree) -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, module in tree.trees.items():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef) and node.name != "Config":
                places[node.name].append(name)
    for cls, names in sorted(places.items()):
        if len(names) > 1:
            yield f"class {cls} is defined in {', '.join(names)}"


def siblings(tree: Tree) -> Iterator[str]:
    for name, targets in tree.imports.items():
        plugin = tree.plugin_of(name)
        for target in sorted(targets):
            other = tree.plugin_of(target)
            if not plugin or not other or plugin[0] in BUILT_ON_EACH_OTHER:
                continue
            if plugin[0] == other[0] and plugin != other:
                yield f"plug-in {name} imports plug-in {target}"


def foreign_attributes(tree: Tree) -> Iterator[str]:
    """`a.b = c  # type: ignore[attr-defined]`, where a is not self."""
    for name, text in tree.texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            setting = re.match(r"\s*(?!self\.)[\w.\[\]]+\.\w+ = .*# type: ignore", line)
            if setting:
                yield f"{name}, line {number}: an attribute is set on a foreign object"


def literal_getattrs(tree: Tree) -> Iterator[str]:
    """getattr(x, "name") where a class of ours defines `name` and x is not a library's object."""
    own = {n for module in tree.trees.values() for n in _attributes(module)}
    for name, module in tree.trees.items():
        for node in ast.walk(module):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr"):
                continue
            target, attribute = ast.unparse(node.args[0]), node.args[1]
            literal = attribute.value if isinstance(attribute, ast.Constant) else None
            if literal in own and not _is_of_a_library(target):
                yield f'{name}, line {node.lineno}: getattr({target}, "{literal}")'


def _is_of_a_library(target: str) -> bool:
    """A model, module, configuration, tokenizer, processor, KV cache or exception is not ours."""
    words = (
        "model",
        "module",
        "child",
        "config",
        "tokenizer",
        "processor",
        "text",
        "hook",
        "cache",
        "e",
    )
    return target.rsplit(".", 1)[-1].removesuffix("_config") in (*words, "generation", "attention")


def _attributes(module: ast.Module) -> Iterator[str]:
    """Names that the module's classes define: fields, methods, and what they set on self."""
    for cls in (n for n in ast.walk(module) if isinstance(n, ast.ClassDef)):
        for node in ast.walk(cls):
            if isinstance(node, ast.FunctionDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    yield node.attr


def crowded_folders(tree: Tree) -> Iterator[str]:
    files: dict[Path, int] = defaultdict(int)
    for name, path in tree.paths.items():
        is_plugin = tree.plugin_of(name) is not None and len(name.split(".")) == 3
        if path.name != "__init__.py" and not is_plugin:
            files[path.parent] += 1
    for folder, count in sorted(files.items()):
        if count > MOST_FILES:
            yield f"{folder.relative_to(tree.source)} holds {count} files, at most {MOST_FILES}"


RULES = (
    circles, upward, repeated_classes, siblings, foreign_attributes, literal_getattrs,
    crowded_folders,
)  # fmt: skip


def problems(source: Path = SOURCE) -> list[str]:
    """Everything that is wrong, one line each."""
    from errata.core.registry import KINDS

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]
    layers = [set(re.findall(r"[\w.]+", layer)) for layer in contract["layers"]]
    tree = Tree(source, KINDS, layers)
    return [problem for rule in RULES for problem in rule(tree)]


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "the house is in order")
    sys.exit(bool(found))
