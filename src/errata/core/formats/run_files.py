"""The shapes of a run's JSON files, and the hashes that tie its scores to its answers. No torch.

Each file is checked once, where it is read. A file has at least these fields: newer versions may
have more, and what older ones lack has a default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import (
    check_regular,
    checked,
    exists,
    read_as,
    read_bytes,
    read_json,
    shortened,
    write_json,
)
from errata.core.formats.own_files import own_object
from errata.core.kinds import ProbeKind
from errata.core.types import Case, Probe, Skip

SCHEMA = 1
#: What scores are computed from.
SCORED = ("plan.json", "before.jsonl", "answers.jsonl", "verdicts.jsonl", "judging.json")
HASHES = "scored.json"


@dataclass(frozen=True)
class StoredManifest:
    """What `manifest.json` must hold for a run to be shown."""

    editor: str = ""
    backbone: str = ""
    fingerprint: str = ""
    benchmark: str = ""
    protocol: str = ""
    seed: int = 0
    limit: int | None = None
    preset: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    command: str | list[str] = ""
    earlier_limits: list[int] = field(default_factory=list)
    root: str = ""


@dataclass(frozen=True)
class StoredLane:
    id: str
    cases: tuple[str, ...]


@dataclass(frozen=True)
class StoredUnit:
    id: str
    lanes: tuple[StoredLane, ...]


@dataclass(frozen=True)
class StoredPlan:
    """`plan.json`."""

    cases: tuple[Case, ...]
    units: tuple[StoredUnit, ...]
    panel: tuple[Probe, ...] = ()
    dropped: tuple[Skip, ...] = ()
    benchmark: str = ""
    protocol: str = ""
    data: str = ""


@dataclass(frozen=True)
class StoredScore:
    """One entry of `scores.json`."""

    value: float | None
    n: int
    units: int
    unscored: int
    ci95: tuple[float, float] | None = None
    base: float | None = None


@dataclass(frozen=True)
class StoredCurve:
    own: list[float | None]
    last: list[float | None]
    n: list[int]


Entries = dict[str, StoredScore]


@dataclass(frozen=True)
class StoredIntervals:
    """How the intervals were made. Files of older versions have `bootstrap` instead."""

    over: str
    method: str = ""


@dataclass(frozen=True)
class StoredScores:
    """`scores.json`."""

    cases: int
    units: int
    metrics: Entries
    scorers: dict[str, str]
    capped: dict[str, int]
    unscored_because: dict[str, int]
    intervals: StoredIntervals | None = None
    by_origin: dict[str, Entries] = field(default_factory=dict)
    by_position: dict[str, StoredCurve] = field(default_factory=dict)
    kinds: dict[str, ProbeKind] = field(default_factory=dict)
    by_part: dict[str, dict[str, Entries]] = field(default_factory=dict)
    macro: dict[str, Entries] = field(default_factory=dict)
    judge: str = ""


@dataclass(frozen=True)
class StoredPhase:
    seconds: float | None = None
    count: int | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class StoredTiming:
    """`timing.json`."""

    edit_seconds: list[float] = field(default_factory=list)
    phases: dict[str, StoredPhase] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredJudge:
    """`judging.json`."""

    judge: str = ""


@dataclass(frozen=True)
class StoredHashes:
    """`scored.json`: the sha256 of each file that the scores were computed from."""

    files: dict[str, str]


def read_manifest(run: Path) -> dict[str, Any]:
    """Raises BadRun."""
    path = run / "manifest.json"
    data = read_json(path)
    checked(StoredManifest, data, path)
    return dict(data)


def read_stored_plan(run: Path) -> tuple[dict[str, Any], StoredPlan]:
    """plan.json without its cases, and all of it checked. Raises BadRun, also on another schema."""
    path = run / "plan.json"
    data = own_object(Case, read_bytes(path), "cases") or read_json(path)
    _check_schema(data, path, "Repeat the run, or use the version that wrote it.")
    plan = checked(StoredPlan, data, path)
    cases = [c.id for c in plan.cases]
    planned = [case for unit in plan.units for lane in unit.lanes for case in lane.cases]
    lanes = [lane.id for unit in plan.units for lane in unit.lanes]
    if any(len(set(ids)) < len(ids) for ids in (cases, planned, lanes)) or not (
        set(planned) <= set(cases)
    ):
        raise BadRun(f"{path} plans a case twice, or one it does not hold.")
    return {k: v for k, v in data.items() if k != "cases"}, plan


def read_scores(run: Path) -> dict[str, Any]:
    """scores.json. Raises BadRun when the run is not scored, or has changed since."""
    path = run / "scores.json"
    again = f"Repeat `errata score {run}`."
    if not exists(path):
        raise BadRun(f"{run} has no scores.json. Write it with `errata score {run}`.")
    data = read_json(path)
    _check_schema(data, path, again)
    checked(StoredScores, data, path)
    if exists(run / HASHES):
        hashes = read_as(StoredHashes, run / HASHES)
        now = {name: _sha256(run / name) for name in SCORED}
        changed = [name for name in SCORED if hashes.files.get(name, "") != now[name]]
        if changed:
            raise BadRun(f"{run / changed[0]} has changed since the run was scored. {again}")
    return dict(data)


def write_scores(run: Path, scores: Mapping[str, Any]) -> None:
    """Writes scores.json, and the hashes of what it was computed from."""
    write_json(run / "scores.json", scores)
    hashes = {name: sha for name in SCORED if (sha := _sha256(run / name))}
    write_json(run / HASHES, {"schema": 1, "files": hashes})


def read_timing(run: Path) -> dict[str, Any]:
    """timing.json; {} where there is none. Raises BadRun."""
    path = run / "timing.json"
    if not exists(path):
        return {}
    data = read_json(path)
    checked(StoredTiming, data, path)
    return dict(data)


def judge_of(run: Path) -> str:
    """Identity of the judge whose verdicts count; "" before any judging. Raises BadRun."""
    path = run / "judging.json"
    return read_as(StoredJudge, path).judge if exists(path) else ""


def _check_schema(data: Any, path: Path, advice: str) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise BadRun(
            f"{path} is of another version: it has schema {shortened(schema)}, this errata reads "
            f"{SCHEMA}. {advice}"
        )


def _sha256(path: Path) -> str:
    """The hash of a file; empty where there is none."""
    check_regular(path)
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return ""
