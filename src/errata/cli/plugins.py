"""`list`, `show` and `check`: the registered plug-ins. No model is loaded for `list` and `show`."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import MISSING, fields
from importlib.resources import files
from typing import Annotated, Any

import typer

from errata.cli.shared.classes import stored
from errata.cli.shared.options import AsJson, bundled_models, print_facts, quiet
from errata.cli.shared.printing import print_json, say
from errata.core import registry
from errata.core.config import meanings
from errata.core.errors import BadSpec, UnknownName
from errata.io import packaged_models

Kind = Annotated[str, typer.Argument(metavar="KIND", help=", ".join(registry.KINDS))]


def _kind(text: str) -> str:
    """A kind from its name in singular or plural. Raises UnknownName."""
    for kind in registry.KINDS:
        if text in (kind, registry.singular(kind)):
            return kind
    raise UnknownName("kind", text, registry.KINDS)


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Every registered name of a kind with one line about it.

    Of backbones also the classes of transformers that were tried, with their status.
    """
    rows = [{"name": n, "summary": registry.summary(kind, n)} for n in registry.names(kind)]
    if kind != "backbones":
        return rows
    families = [{**row, "type": "family"} for row in rows]
    models: list[dict[str, Any]] = [
        {"name": n, "summary": "bundled model", "type": "model"} for n in bundled_models()
    ]
    models += [
        {"name": n, "summary": f"{m.title}, in the package {m.package} ({m.status})",
         "type": "model", "installed": m.paths() is not None}
        for n, m in packaged_models.MODELS.items()
    ]  # fmt: skip
    tried = [
        {**row, "name": row["class"], "summary": row["status"], "type": "class"}
        for row in stored()["classes"]
    ]
    return models + families + tried


def list_names(kind: Kind, as_json: AsJson = False) -> None:
    """List the plug-ins of a kind, such as editors."""
    rows = rows_of(_kind(kind))
    if as_json:
        print_json(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{row['name']:<{width}}  {row['summary']}")
    if not rows:
        say(f"no {_kind(kind)} yet")


def show(
    kind: Kind,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Show one plug-in: settings, presets, tasks, documentation."""
    which = _kind(kind)
    if which == "backbones" and name in bundled_models():
        facts, text = _bundled(name)
    elif which == "backbones" and name in packaged_models.MODELS:
        facts, text = _packaged(name)
    else:
        cls = registry.load(which, _without_preset(which, name))
        facts = {"name": name, "kind": which, **_facts(which, cls)}
        text = _documentation(cls)
    if as_json:
        print_json({**facts, "documentation": text})
        return
    means = facts.pop("meanings", {})
    settings = facts.pop("settings", None)
    print_facts(facts)
    if settings is not None:
        say("settings:" if settings else "settings: none")
    for setting, value in (settings or {}).items():
        say(f"  {setting}: {value}")
        for line in textwrap.wrap(means.get(setting, ""), 88):
            say(f"      {line}")
    say(f"\n{text}")


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered plug-in.")],
) -> None:
    """Run the contract checks on a plug-in, built in or your own."""
    known = {n for kind in registry.KINDS for n in registry.names(kind)}
    if name not in known:
        if name in bundled_models() or name in packaged_models.MODELS:
            raise BadSpec(
                f"'{name}' is a bundled model, not a plug-in. `errata doctor {name}` checks it."
            )
        raise UnknownName(
            "plug-in",
            name,
            known,
            "`errata list KIND` shows them. A plug-in of your own is found once its package is "
            "installed; after a change of its entry points install it again (pip install -e .).",
        )
    quiet()
    from errata import contract

    if not contract.run(name):
        raise typer.Exit(1)


def _without_preset(kind: str, name: str) -> str:
    """The name; that of an editor without the preset in `editor:preset`."""
    first = name.partition(":")[0]
    return first if kind == "editors" and first in registry.names(kind) else name


def _bundled(name: str) -> tuple[dict[str, Any], str]:
    """A bundled model: facts, and its card."""
    families = registry.usable("backbones").items()
    family, cls = next((n, c) for n, c in families if name in c.bundled)
    folder = files("errata") / "assets" / name
    states = folder / "states"
    facts = {
        "name": name,
        "kind": "bundled model",
        "family": family,
        "capabilities": sorted(cls.capabilities),
        "benchmark": cls.bundled[name],
        "states for": sorted(f.name for f in states.iterdir()) if states.is_dir() else [],
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    return facts, card.split("---", 2)[-1].strip() if card.startswith("---") else card


def _packaged(name: str) -> tuple[dict[str, Any], str]:
    """A model in a package of its own: facts, and what happens to it."""
    model = packaged_models.MODELS[name]
    facts = {
        "name": name,
        "kind": "language model in a package",
        "title": model.title,
        "package": model.package,
        "status": model.status,
        "licence": model.licence,
        "prompt style": model.style,
    }
    return facts, inspect.cleandoc(packaged_models.__doc__ or "")


def _documentation(cls: type) -> str:
    import sys

    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "\n\n".join(t for t in (module, text) if t)


def _facts(kind: str, cls: Any) -> dict[str, Any]:
    if kind == "editors":
        return {
            "edits": sorted(cls.modalities),
            "needs prepare": cls.needs_state,
            "settings": settings_of(cls.Config),
            "meanings": meanings(cls.Config),
            "presets": {k: dict(v) for k, v in cls.presets.items()},
        }
    if kind == "scopes":
        own = cls.needs_state or cls.keeps_state
        return {
            "state of": cls.state_name or ("the scope itself" if own else "none"),
            "settings": settings_of(cls.Config),
            "meanings": meanings(cls.Config),
        }
    if kind == "backbones":
        return {"capabilities": sorted(cls.capabilities)}
    if kind == "benchmarks":
        return {
            "version": cls.version,
            "tasks": list(cls.tasks),
            **({"file": f"{cls.name}:{cls.source}"} if cls.source else {}),
            "splits": list(cls.splits),
            "variants": list(cls.variants),
        }
    if kind == "protocols":
        return {"version": cls.version, "default": cls("").spec}
    if kind == "analyses":
        return {
            "benchmark": cls.benchmark or "to be named",
            "settings": settings_of(cls.Config),
            "meanings": meanings(cls.Config),
        }
    return {"version": cls.version} if hasattr(cls, "version") else {}


def settings_of(config: type) -> dict[str, str]:
    """Fields of a Config as `type = default`."""
    settings = {}
    for f in fields(config):
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        if f.default is not MISSING:
            settings[f.name] = f"{kind} = {f.default!r}"
        elif f.default_factory is not MISSING:
            settings[f.name] = f"{kind} = {f.default_factory()!r}"
        else:
            settings[f.name] = f"{kind}, required"
    return settings
