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
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from errata.core.errors import BadPlugin, UnknownName, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = (
    *("patches", "gates", "scopes", "editors", "backbones", "benchmarks", "protocols"),
    *("metrics", "judges", "analyses"),
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
    from importlib import metadata

    return tuple(metadata.entry_points(group=group))


def entry_points(group: str) -> Sequence[EntryPoint]:
    return _installed(group, tuple(sys.path))


def _points(kind: str, name: str) -> list[EntryPoint]:
    """The entry points of other packages with this name."""
    return [e for e in entry_points(group=_package(kind)) if e.name == name]


def _package_of(point: EntryPoint) -> str:
    """The package that an entry point comes from."""
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]


def _clash(kind: str, name: str) -> str:
    """Why a name cannot be used: two packages have it, or another one than errata; "" if it can."""
    owners = list(dict.fromkeys(map(_package_of, _points(kind, name))))
    if owners and (name in _builtin(kind) or (kind, name) in RENAMED):
        owners.insert(0, "errata")
    if len(owners) < 2:
        return ""
    return (
        f"{singular(kind)} '{name}' is in two packages: {' and '.join(owners)}. Uninstall "
        f"{owners[-1]}, or ask its authors for another name."
    )


def _loaded(kind: str, point: EntryPoint) -> type[Any]:
    """The class of another package's entry point. Raises BadPlugin, whatever is wrong with it."""
    what = f"{singular(kind)} '{point.name}' of the package {_package_of(point)}"
    mend = f"Update {_package_of(point)}, or uninstall it; errata works without it."
    try:
        found = point.load()
    except (Exception, SystemExit) as e:
        raise BadPlugin(
            f"{what} cannot be loaded: {type(e).__name__}: {one_line(e)}. {mend}"
        ) from e
    if not inspect.isclass(found) or vars_of(found, "plugin_kind") != kind:
        raise BadPlugin(f"{what} is no class of that kind: {point.value} is {found!r}. {mend}")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(vars_of(found, "__abstractmethods__")))
        raise BadPlugin(f"{what} is not complete: {found.__name__} lacks {lacking}. {mend}")
    return found


def vars_of(cls: type, name: str) -> Any:
    """A class attribute, of the class or a base; None where there is none."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def blamed(error: BaseException) -> str:
    """The plug-in of another package in whose code an error was raised; "" for none.

    Where the code belongs to several plug-ins of a package, the package alone.
    """
    theirs = [(kind, point) for kind in KINDS for point in entry_points(group=_package(kind))]
    trace, found = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        found = _owner(theirs, module) or found
        trace = trace.tb_next
    return found


def _owner(theirs: Sequence[tuple[str, EntryPoint]], module: str) -> str:
    """Whose code a module is: a plug-in and its package, or the package of several; "" for none."""
    root = module.partition(".")[0]
    modules = [point.value.partition(":")[0].strip() for _, point in theirs]
    package = [t for t, m in zip(theirs, modules, strict=True) if m.partition(".")[0] == root]
    exact = [t for t, m in zip(theirs, modules, strict=True) if m == module]
    if not package:
        return ""
    if len(near := exact or package) > 1:
        return f"a plug-in of the package {_package_of(near[0][1])}"
    kind, point = near[0]
    return f"{singular(kind)} '{point.name}' of the package {_package_of(point)}"


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({*_builtin(kind), *(e.name for e in entry_points(group=_package(kind)))})


def usable(kind: str) -> dict[str, type[Any]]:
    """All plug-ins of a kind by name, without those of other packages that cannot be loaded.

    For commands that look at every plug-in and use one of them at most.
    """
    classes = {}
    for name in names(kind):
        try:
            classes[name] = load(kind, name)
        except BadPlugin:
            continue
    return classes


def current_name(kind: str, name: str) -> str:
    """The name that the plug-in has today; a name that was never changed is returned as it is."""
    return RENAMED.get((kind, name), name)


def summary(kind: str, name: str) -> str:
    """First line of the plug-in's module docstring, read without importing it."""
    name = current_name(kind, name)
    points = _points(kind, name)
    if points:
        clash = " (refused: the name is taken)" if _clash(kind, name) else ""
        return f"from {' and '.join(dict.fromkeys(map(_package_of, points)))}{clash}"
    module = _builtin(kind)[name]
    parent = importlib.util.find_spec(_package(kind))
    assert parent is not None and parent.submodule_search_locations is not None
    base = Path(next(iter(parent.submodule_search_locations))) / module.rsplit(".", 1)[1]
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = doc.splitlines()[0] if doc else ""
    return first if first.endswith("...") else first.rstrip(".")


def load(kind: str, name: str) -> type[Any]:
    """The plug-in class called `name`, now or formerly.

    Raises UnknownName, with the nearest known name; BadPlugin for one of another package that
    cannot be loaded, or that has the name of another one.
    """
    if clash := _clash(kind, name):
        raise BadPlugin(clash)
    name = current_name(kind, name)
    points = _points(kind, name)
    if points:
        return _loaded(kind, points[0])
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
