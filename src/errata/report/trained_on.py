"""What kinds of questions an editor has seen before it is measured, in one line of a report.

Read from the settings that every run records, by their names: whatever editor has such settings is
covered, and old runs are too. A score on a kind of questions that an editor was trained on says
less than one on a kind that it never saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.core.kinds import KINDS

NOTHING = "nothing but the edits themselves"

#: (kinds, what they are for, settings that must not be 0); the older names of a setting behind it
_SEEN = (
    (("generality_kinds", "gen_kinds"), "should follow the edit", ("generality_examples", "gen")),
    (("locality_kinds", "loc_kinds"), "should stay", ("locality_examples", "loc")),
    (("relation_kinds",), "which relations follow from which is learnt on", ()),
    (("memory_kinds",), "neurons are kept silent on", ("memory_weight",)),
)
_GATE = (("tuning_kinds",), "the gate's threshold is tuned on", ("gate_cases",))


def trained_on(config: Mapping[str, Any]) -> str:
    """The line, from the settings of a run; `NOTHING` for an editor without such settings."""
    seen = [*_SEEN, *([_GATE] if config.get("threshold") is None else [])]
    parts = []
    for names, role, switches in seen:
        kinds = _first(config, names)
        if kinds and _first(config, switches) not in (0, 0.0):
            parts.append(f"{', '.join(_words(kind) for kind in kinds)} ({role})")
    if config.get("corpus"):
        parts.append("training edits (as demonstrations)")
    return "; ".join(parts) or NOTHING


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if name in config), None)


def _words(kind: str) -> str:
    return KINDS[kind].heading if kind in KINDS else kind
