"""Contract checks: properties that every plug-in must have, one function each.

Our tests run them over the whole registry; `errata check NAME` runs them on one plug-in.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from errata.contract import benchmarks, editors, gates, judges, metrics, protocols, scopes
from errata.contract._names import named
from errata.core import registry
from errata.core.errors import BadSpec

__all__ = ["CHECKED", "checks", "named", "run"]

CHECKED = ("editors", "gates", "scopes", "benchmarks", "protocols", "metrics", "judges")


def checks(kind: str, name: str) -> list[tuple[str, Callable[[], None]]]:
    """(property, function that raises if the plug-in does not have it)."""
    cls = registry.load(kind, name)
    if kind == "editors":
        folder = Path(tempfile.mkdtemp(prefix="errata-check-"))
        properties = editors.checks(cls, editors.bundled(folder, cls))
    else:
        module = {
            "gates": gates, "scopes": scopes, "benchmarks": benchmarks, "protocols": protocols,
            "metrics": metrics,
            "judges": judges,
        }[kind]  # fmt: skip
        properties = module.checks(cls)

    def holds_name() -> None:
        """The class has the name under which it is registered."""
        assert cls.name == name, f"registered as '{name}', but the class is named '{cls.name}'"

    return [(named(holds_name), holds_name), *properties]


def run(name: str) -> bool:
    """Checks the plug-in and prints one line per property. True if all hold."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True)
    kinds = [k for k in CHECKED if name in registry.names(k)]
    if not kinds:
        raise BadSpec(
            f"there are no contract checks for the kind of '{name}', only for "
            f"{', '.join(CHECKED)}. "
            "A backbone is checked by `errata doctor MODEL`."
        )
    outcomes = []
    for kind in kinds:
        for words, check in checks(kind, name):
            why = _failure(check)
            outcomes.append(not why)
            sign = "[red]fails[/red]" if why else "[green]holds[/green]"
            console.print(
                f"{sign} {kind}/{name}: {words}" + (f"\n      {escape(why)}" if why else "")
            )
    console.print(f"{sum(outcomes)} of {len(outcomes)} properties hold")
    return all(outcomes)


def _failure(check: Callable[[], None]) -> str:
    """Why the property does not hold, in one line; "" if it holds.

    Whatever a plug-in raises is a failure of its author's code, and named with its place.
    """
    try:
        check()
    except AssertionError as e:
        return (str(e).strip().splitlines() or [f"an assertion in {_place(e)}"])[0]
    except Exception as e:
        reason = (str(e).strip().splitlines() or ["no reason given"])[0]
        return f"{type(e).__name__}: {reason} ({_place(e)})"
    return ""


def _place(error: Exception) -> str:
    """File and line of the innermost frame."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"
