"""Contract checks: properties that every plug-in must have, one function each.

Our tests run them over the whole registry; `errata check NAME` runs them on one plug-in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from errata.contract import benchmarks, editors, gates, judges, metrics, protocols
from errata.contract._names import named
from errata.core import registry
from errata.core.errors import BadSpec

__all__ = ["CHECKED", "checks", "named", "run"]

CHECKED = ("editors", "gates", "benchmarks", "protocols", "metrics", "judges")


def checks(kind: str, name: str) -> list[tuple[str, Callable[[], None]]]:
    """(property, function that raises AssertionError if the plug-in does not have it)."""
    if kind == "editors":
        folder = Path(tempfile.mkdtemp(prefix="errata-check-"))
        cls = registry.load(kind, name)
        return editors.checks(cls, editors.bundled(folder, cls))
    module = {
        "gates": gates, "benchmarks": benchmarks, "protocols": protocols, "metrics": metrics,
        "judges": judges,
    }[kind]  # fmt: skip
    return module.checks(registry.load(kind, name))  # type: ignore[no-any-return]


def run(name: str) -> bool:
    """Checks the plug-in and prints one line per property. True if all hold."""
    from rich.console import Console

    console = Console()
    kinds = [k for k in CHECKED if name in registry.names(k)]
    if not kinds:
        raise BadSpec(
            f"there are no contract checks for the kind of '{name}', only for "
            f"{', '.join(CHECKED)}. "
            "A backbone is checked by `errata doctor MODEL`."
        )
    all_hold = True
    for kind in kinds:
        for words, check in checks(kind, name):
            try:
                check()
            except AssertionError as e:
                all_hold = False
                why = (str(e).strip().splitlines() or ["no reason given"])[0]
                console.print(f"[red]fails[/red] {kind}/{name}: {words}\n      {why}")
            else:
                console.print(f"[green]holds[/green] {kind}/{name}: {words}")
    return all_hold
