"""Finds plug-ins by kind and name.

A built-in plug-in of kind `editors` is the file `errata/editors/<name>.py` (or a package of that
name). Other packages register an entry point in the group `errata.editors`. A plug-in is imported
only when it is loaded: listing names loads no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

from errata.core.errors import UnknownName

KINDS = (
    *("patches", "gates", "editors", "backbones", "benchmarks", "protocols", "metrics"),
    *("judges", "analyses"),
)
#: (kind, former name) -> name today. Former names stand in saved files and in users' scripts.
RENAMED = MappingProxyType({("judges", "microworld"): "rendered_shapes"})


def singular(kind: str) -> str:
    """`editors` -> `editor`."""
    return {"patches": "patch", "analyses": "analysis"}.get(kind, kind.removesuffix("s"))


def _package(kind: str) -> str:
    assert kind in KINDS, kind
    return f"errata.{kind}"


@cache
def _builtin(kind: str) -> dict[str, str]:
    """name -> module; the modules are not imported."""
    spec = importlib.util.find_spec(_package(kind))
    assert spec is not None and spec.submodule_search_locations is not None
    names = (m.name for m in pkgutil.iter_modules(spec.submodule_search_locations))
    return {n: f"{_package(kind)}.{n}" for n in sorted(names) if not n.startswith("_")}


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points on `path`, which is sys.path. Cached: one reading takes 10 ms."""
    return tuple(metadata.entry_points(group=group))


def entry_points(group: str) -> Sequence[EntryPoint]:
    return _installed(group, tuple(sys.path))


def _external(kind: str) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=_package(kind))}


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({*_builtin(kind), *_external(kind)})


def current_name(kind: str, name: str) -> str:
    """The name that the plug-in has today; a name that was never changed is returned as it is."""
    return name if name in _external(kind) else RENAMED.get((kind, name), name)


def summary(kind: str, name: str) -> str:
    """First line of the plug-in's module docstring, read without importing it."""
    name = current_name(kind, name)
    if name in _external(kind):
        dist = _external(kind)[name].dist
        return f"from {dist.name}" if dist else "third party"
    module = _builtin(kind)[name]
    parent = importlib.util.find_spec(_package(kind))
    assert parent is not None and parent.submodule_search_locations is not None
    base = Path(next(iter(parent.submodule_search_locations))) / module.rsplit(".", 1)[1]
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0].rstrip(".") if doc else ""


def load(kind: str, name: str) -> type[Any]:
    """The plug-in class called `name`, now or formerly.

    Raises UnknownName, with the nearest known name.
    """
    name = current_name(kind, name)
    external = _external(kind)
    if name in external:
        return external[name].load()  # type: ignore[no-any-return]
    if name not in _builtin(kind):
        raise UnknownName(singular(kind), name, names(kind))
    module = importlib.import_module(_builtin(kind)[name])
    classes = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if c.__module__.startswith(module.__name__)
        and hasattr(c, "plugin_kind")
        and c.plugin_kind == kind
        and not inspect.isabstract(c)
        and not c.__name__.startswith("_")
    ]
    assert len(classes) == 1, f"{module.__name__} must define exactly one {kind} plug-in: {classes}"
    return classes[0]
