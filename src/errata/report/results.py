"""What several runs found, grouped into settings: the same question put to other editors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import read_json
from errata.core.types import digest
from errata.evaluation.run_folder import read_plan

SCHEMA = 1
_QUOTED = re.compile(r"'[^']*'")
#: Of these the first that was asked is drawn by place in the sequence, the others fold away.
CURVE_KINDS = ("reliability", "efficacy", "t_generality", "m_locality", "near_locality")


@dataclass(frozen=True, slots=True)
class Result:
    """One run: its files, and the label that tells it from the others of its setting."""

    path: Path
    manifest: Mapping[str, Any]
    plan: Mapping[str, Any]
    scores: Mapping[str, Any]
    timing: Mapping[str, Any]
    label: str = ""

    @property
    def editor(self) -> str:
        return str(self.manifest.get("editor", self.path.name))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The editor's settings that were passed, without defaults."""
        passed = self.manifest.get("arguments")
        return passed if isinstance(passed, Mapping) else {}

    @property
    def command(self) -> str:
        """The command that makes this run again."""
        if given := self.manifest.get("command"):
            return given if isinstance(given, str) else " ".join(map(str, given))
        m = self.manifest
        words = [f"errata bench {m.get('backbone')} --editor {self.editor}"]
        words += [f"--benchmark {m.get('benchmark')} --protocol {m.get('protocol')}"]
        words += [f"--{k} {m[k]}" for k in ("seed", "limit") if m.get(k) is not None]
        words += [f"--set {k}={v}" for k, v in self.arguments.items()]
        return " ".join([*words, f"--out {self.path.name}"])


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs on one backbone, benchmark, protocol and set of cases; what may share a table."""

    slug: str
    backbone: str
    fingerprint: str
    benchmark: str
    protocol: str
    results: tuple[Result, ...]

    @property
    def cases(self) -> int:
        return int(self.results[0].scores["cases"])

    @property
    def units(self) -> int:
        return int(self.results[0].scores["units"])

    @property
    def sequential(self) -> bool:
        return any(r.scores.get("by_position") for r in self.results)

    @property
    def by_place(self) -> tuple[str, ...]:
        """Kinds of questions whose scores by place in the sequence later edits changed."""
        changed = {
            key.partition(".")[0]
            for r in self.results
            for key, points in (r.scores.get("by_position") or {}).items()
            if points["own"] != points["last"]
        }
        return tuple(kind for kind in CURVE_KINDS if kind in changed)

    @property
    def dropped(self) -> dict[str, list[tuple[str, int]]]:
        """What was left out, `cases` and single `questions`: (reason, rows), most frequent first.

        Reasons that differ in what they quote count as one.
        """
        counts = {"cases": Counter[str](), "questions": Counter[str]()}
        for row in self.results[0].plan.get("dropped", ()):
            reason = _QUOTED.sub("'…'", str(row["reason"]))
            counts["questions" if "/" in row["id"] else "cases"][reason] += 1
        return {what: found.most_common() for what, found in counts.items() if found}


def read_result(run: Path) -> Result:
    """Raises BadRun when the folder has not been scored."""
    manifest = read_json(run / "manifest.json")
    if not (run / "scores.json").exists():
        raise BadRun(f"{run} has no scores.json. Write it with `errata score {run}`.")
    scores = read_json(run / "scores.json")
    if scores.get("schema") != SCHEMA:
        raise BadRun(f"{run / 'scores.json'} is of another version. Repeat `errata score {run}`.")
    timing = read_json(run / "timing.json") if (run / "timing.json").exists() else {}
    return Result(run, manifest, read_plan(run), scores, timing)


def read_settings(runs: Sequence[Path]) -> list[Setting]:
    """The runs by setting, in the order given. Raises BadRun without any run."""
    if not runs:
        raise BadRun("no run was named. Give one or more folders that `errata bench` wrote.")
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in map(read_result, dict.fromkeys(runs)):
        planned = sorted(
            case for u in result.plan["units"] for lane in u["lanes"] for case in lane["cases"]
        )
        facts = (str(result.manifest.get(k, "")) for k in ("backbone", "fingerprint"))
        spec = (
            str(result.plan.get(k) or result.manifest.get(k)) for k in ("benchmark", "protocol")
        )
        groups.setdefault((*facts, *spec, digest(planned)), []).append(result)
    return [
        Setting(f"s{i}", key[0], key[1], key[2], key[3], labelled(results))
        for i, (key, results) in enumerate(groups.items())
    ]


def labelled(results: Sequence[Result]) -> tuple[Result, ...]:
    """Short labels that are unique: the editor, then what was passed, the seed, the folder."""
    labels = [r.editor for r in results]
    details = (
        [", ".join(f"{k}={v}" for k, v in r.arguments.items()) or "defaults" for r in results],
        [f"seed {r.manifest.get('seed')}" for r in results],
        [r.path.name for r in results],
    )
    for detail in details:
        counts = Counter(labels)
        twins = {x for x, n in counts.items() if n > 1}
        tells = {
            x: len({d for y, d in zip(labels, detail, strict=True) if y == x}) > 1 for x in twins
        }
        labels = [
            f"{x} ({d})" if x in twins and tells[x] else x
            for x, d in zip(labels, detail, strict=True)
        ]
    return tuple(replace(r, label=x) for r, x in zip(results, labels, strict=True))
