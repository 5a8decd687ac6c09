"""Scored runs, grouped into settings: runs that differ in their editor alone share a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core import registry
from errata.core.errors import BadRun
from errata.core.formats.run_files import read_manifest, read_scores, read_timing
from errata.core.kinds import COLUMNS, ProbeKind
from errata.core.measure.metric import Scorer
from errata.core.types import digest, from_json
from errata.evaluation.run_folder import read_plan
from errata.evaluation.score_table import DEFAULT_METRICS

_QUOTED = re.compile(r"'[^']*'")


@dataclass(frozen=True, slots=True)
class Result:
    """One run: its files, and a label that is unique within its setting."""

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
    def metrics(self) -> Mapping[str, Any]:
        """`<kind>[/<group>].<scorer>[@<tag>]` -> its entry in `scores.json`."""
        metrics: Mapping[str, Any] = self.scores["metrics"]
        return metrics

    @property
    def case_ids(self) -> list[str]:
        """The planned cases, sorted."""
        lanes = (lane for unit in self.plan["units"] for lane in unit["lanes"])
        return sorted(case for lane in lanes for case in lane["cases"])

    @property
    def custom_kinds(self) -> dict[str, ProbeKind]:
        """The kinds of probes of this run that errata does not have, by name."""
        stored: Mapping[str, Any] = self.scores.get("kinds", {})
        return {name: from_json(ProbeKind, kind) for name, kind in stored.items()}

    @property
    def scorers(self) -> set[str]:
        """The names of the scorers that the scores are of."""
        return {key.rpartition(".")[2].partition("@")[0] for key in self.metrics}

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The editor's settings that were passed, without defaults."""
        passed = self.manifest.get("arguments")
        return passed if isinstance(passed, Mapping) else {}

    @property
    def command(self) -> str:
        """The command that makes this run again."""
        if command := self.manifest.get("command"):
            return command if isinstance(command, str) else " ".join(map(str, command))
        m = self.manifest
        words = [f"errata bench {m.get('backbone')} --editor {self.editor}"]
        words += [f"--benchmark {m.get('benchmark')} --protocol {m.get('protocol')}"]
        words += [f"--{k} {m[k]}" for k in ("seed", "limit") if m.get(k) is not None]
        words += [_option(k, v) for k, v in self.arguments.items()]
        return " ".join([*words, f"--out {self.path.name}"])


def _option(name: str, value: Any) -> str:
    """How an argument of an editor, or of the scope in front of it, is given to a command."""
    first, _, rest = name.partition(".")
    if first != "scope":
        return f"--set {name}={value}"
    if not rest:
        return f"--scope {value}"
    return f"--scope-state {value}" if rest == "state" else f"--scope-set {rest}={value}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs on one backbone, benchmark, protocol and set of cases: they may share a table."""

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
    def forgotten(self) -> tuple[str, ...]:
        """Columns whose scores by position in the sequence changed after the case's own edit."""
        changed = {
            key.rpartition(".")[0]
            for r in self.results
            for key, points in (r.scores.get("by_position") or {}).items()
            if points["own"] != points["last"]
        }
        return (*(k for k in COLUMNS if k in changed), *sorted(changed - set(COLUMNS)))

    @property
    def dropped(self) -> dict[str, list[tuple[str, int]]]:
        """What the plan left out, `cases` and single `questions`: (reason, number), largest first.

        Reasons that differ only in quoted words count as one.
        """
        counts = {"cases": Counter[str](), "questions": Counter[str]()}
        for row in self.results[0].plan.get("dropped", ()):
            reason = _QUOTED.sub("'…'", str(row["reason"]))
            counts["questions" if "/" in row["id"] else "cases"][reason] += 1
        return {what: reasons.most_common() for what, reasons in counts.items() if reasons}


def read_result(run: Path) -> Result:
    """Raises BadRun when the folder has not been scored, or has changed since."""
    manifest, scores = read_manifest(run), read_scores(run)
    return Result(run, manifest, read_plan(run), scores, read_timing(run))


def read_settings(runs: Sequence[Path]) -> list[Setting]:
    """The runs by setting, in the order given. Raises BadRun without any run."""
    if not runs:
        raise BadRun("no run was named. Give one or more folders that `errata bench` wrote.")
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in map(read_result, dict.fromkeys(runs)):
        facts = (str(result.manifest.get(k, "")) for k in ("backbone", "fingerprint"))
        spec = (
            str(result.plan.get(k) or result.manifest.get(k)) for k in ("benchmark", "protocol")
        )
        groups.setdefault((*facts, *spec, digest(result.case_ids)), []).append(result)
    return [
        Setting(f"s{i}", key[0], key[1], key[2], key[3], labelled(results))
        for i, (key, results) in enumerate(groups.items())
    ]


def labelled(results: Sequence[Result]) -> tuple[Result, ...]:
    """Short labels that are unique: the editor, then what was passed, the seed, the folder."""
    scopes = [str(r.arguments.get("scope", "")) for r in results]
    labels = [
        f"{r.editor} behind {s}" if s else r.editor for r, s in zip(results, scopes, strict=True)
    ]
    details = (
        [
            ", ".join(f"{k}={v}" for k, v in r.arguments.items() if k != "scope") or "defaults"
            for r in results
        ],
        [f"seed {r.manifest.get('seed')}" for r in results],
        [r.path.name for r in results],
    )
    for detail in details:
        pairs = list(zip(labels, detail, strict=True))
        repeated = {label for label, n in Counter(labels).items() if n > 1}
        differs = {x: len({d for y, d in pairs if y == x}) > 1 for x in repeated}
        labels = [f"{x} ({d})" if differs.get(x) else x for x, d in pairs]
    return tuple(replace(r, label=x) for r, x in zip(results, labels, strict=True))


def scorers_of(settings: Sequence[Setting]) -> list[Scorer]:
    """The scorers of these runs: those of errata's default metrics first, in their order.

    A metric that is no longer installed leaves the name of its scorer.
    """
    results = [result for setting in settings for result in setting.results]
    names = {name for result in results for name in result.scorers}
    metrics = {name for result in results for name in result.scores["scorers"]}
    usable = registry.usable("metrics")
    installed = metrics & set(usable)
    order = (*(m for m in DEFAULT_METRICS if m in installed), *sorted(installed))
    known = {
        scorer.name: scorer
        for metric in dict.fromkeys(order)
        for scorer in usable[metric].scorers()
        if scorer.name in names
    }
    return [*known.values(), *(Scorer(name) for name in sorted(names - set(known)))]
