"""A run folder read back: the plan, and the answers before and after. No torch.

manifest.json   what was run, with which versions
plan.json       the cases, the panel, the lanes, what was dropped and why; frozen before any edit
before.jsonl    one `Answer` per probe (step -1); the panel's under case "panel"; pictures are not
                drawn for the plan: what a drawn probe got before is its answer tagged `pre`
answers.jsonl   one `Answer` per question after edits; the panel's under "panel/<lane>"
images/         the pictures that answers name
verdicts.jsonl  what judges saw in them, one `JudgedImage` a line; the last one counts
judging.json    whose verdicts count
scores.json     computed from the above; timing.json: seconds and memory
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadRun
from errata.core.files import read_json, read_lines
from errata.core.metric import ScoredProbe
from errata.core.types import Answer, Case, JudgeQuestion, Probe, Verdict, digest, from_json

SCHEMA = 1
PANEL = "panel"
NOT_JUDGED = "not judged yet"


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """What one judge saw in one picture: `image` in the run's folder, `view` by its digest."""

    image: str
    sha256: str
    view: str
    judge: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CaseAnswers:
    """One case (or a lane's panel) with its rows; `position` counts from 0 within the lane."""

    case: str
    lane: str
    position: int
    origin: str | None
    rows: tuple[ScoredProbe, ...]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What `read_run` found. `lanes` maps a lane's id to its case ids, in order."""

    path: Path
    manifest: Mapping[str, Any]
    plan: Mapping[str, Any]
    cases: Mapping[str, Case]
    panel: tuple[Probe, ...]
    lanes: Mapping[str, tuple[str, ...]]
    before: Mapping[tuple[str, str], Answer]
    answers: Mapping[tuple[str, str, str], Answer]

    def asked(self, tag: str = "") -> list[CaseAnswers]:
        """Every planned case with its answers of `tag`, then each lane's panel.

        Raises BadRun when some are missing. Under a tag other than "" only some kinds are asked, or
        some cases, or nothing at all: there a case misses what others were asked.
        """
        missing: list[str] = []
        found: list[CaseAnswers] = []
        kinds = {
            p.kind
            for case, _, _, probes, _ in self._slots()
            for p in probes
            if not tag or (case, p.id, tag) in self.answers
        }
        for case, lane, position, probes, before_case in self._slots():
            after = [self.answers.get((case, p.id, tag)) for p in probes]
            if (tag or case.startswith(PANEL)) and all(a is None for a in after):
                continue
            rows = []
            for probe, answer in zip(probes, after, strict=True):
                before = self.before.get((before_case, probe.id))
                if answer is not None and before is not None:
                    rows.append(ScoredProbe(probe, before, answer))
                elif probe.kind in kinds and self._wanted(probe, tag):
                    missing.append(f"{case}/{probe.id}{f' ({tag})' if tag else ''}")
            origin = self.cases[case].origin if case in self.cases else None
            found.append(CaseAnswers(case, lane, position, origin, tuple(rows)))
        if missing:
            raise BadRun(
                f"{self.path} is incomplete: {len(missing)} answers are missing, the first of them "
                f"{missing[0]}. Repeat the same `errata bench` command: it goes on from there."
            )
        return found

    def _wanted(self, probe: Probe, tag: str) -> bool:
        """Whether a kind of probe that was asked under `tag` was asked of this one too."""
        return tag not in ("oracle", "ceiling") or probe.aids is not None

    def _slots(self) -> Iterator[tuple[str, str, int, tuple[Probe, ...], str]]:
        for lane, ids in self.lanes.items():
            for position, case in enumerate(ids):
                yield case, lane, position, self.cases[case].probes, case
        for lane in self.lanes if self.panel else ():
            yield f"{PANEL}/{lane}", lane, 0, self.panel, PANEL


def read_plan(path: Path) -> dict[str, Any]:
    """plan.json as it is. Raises BadRun on another schema."""
    data = read_json(path / "plan.json")
    plan: dict[str, Any] = data if isinstance(data, dict) else {}
    found = plan.get("schema")
    if found != SCHEMA:
        raise BadRun(
            f"{path / 'plan.json'} has schema {found}, this errata reads {SCHEMA}. Repeat the run, "
            "or use the version that wrote it."
        )
    return plan


def read_run(path: Path) -> RunFolder:
    """Raises BadRun when the folder is not a run, or contradicts itself."""
    manifest, plan = read_json(path / "manifest.json"), read_plan(path)
    cases = {c.id: c for c in (from_json(Case, data) for data in plan["cases"])}
    lanes = {lane["id"]: tuple(lane["cases"]) for unit in plan["units"] for lane in unit["lanes"]}
    planned = [case for ids in lanes.values() for case in ids]
    if len(set(planned)) < len(planned) or not set(planned) <= set(cases):
        raise BadRun(f"{path / 'plan.json'} plans a case twice, or one it does not hold.")
    before = _unique(path / "before.jsonl", read_lines(path / "before.jsonl", Answer))
    answers = _unique(path / "answers.jsonl", read_lines(path / "answers.jsonl", Answer))
    views = {(c.id, p.id): p.view for c in cases.values() for p in c.probes if p.view is not None}
    verdicts = read_verdicts(path, judge_of(path))
    for key, answer in answers.items():
        if answer.images and key[:2] in views:
            answers[key] = _with_verdicts(answer, views[key[:2]], verdicts)
    drawn = {p.id for c in cases.values() for p in c.probes if p.kind_info.drawn}
    for (case, probe, tag), answer in answers.items():
        if tag == "pre" and probe in drawn:
            before.setdefault((case, probe, ""), answer)
    return RunFolder(
        path=path,
        manifest=manifest,
        plan=plan,
        cases=cases,
        panel=tuple(from_json(Probe, data) for data in plan.get("panel", ())),
        lanes=lanes,
        before={(case, probe): a for (case, probe, _), a in before.items()},
        answers=answers,
    )


def _unique(path: Path, answers: Sequence[Answer]) -> dict[tuple[str, str, str], Answer]:
    found: dict[tuple[str, str, str], Answer] = {}
    for answer in answers:
        key = (answer.case, answer.probe, answer.tag)
        if key in found:
            raise BadRun(
                f"{path} answers {answer.case}/{answer.probe} twice. Two processes may have "
                "written to one folder: delete the run and repeat it."
            )
        found[key] = answer
    return found


def judge_of(run: Path) -> str:
    """The judge whose verdicts count; "" before any judging."""
    path = run / "judging.json"
    return str(read_json(path).get("judge", "")) if path.exists() else ""


def read_verdicts(run: Path, judge: str) -> dict[tuple[str, str], JudgedImage]:
    """(image, digest of the view) -> what `judge` saw, the last time it looked."""
    lines = read_lines(run / "verdicts.jsonl", JudgedImage)
    return {(j.image, j.view): j for j in lines if j.judge == judge}


def _with_verdicts(
    answer: Answer, view: JudgeQuestion, verdicts: Mapping[tuple[str, str], JudgedImage]
) -> Answer:
    asked = digest(view)
    found = (verdicts.get((image, asked)) for image in answer.images)
    none = Verdict("", note=NOT_JUDGED)
    return replace(answer, verdicts=tuple(j.verdict if j else none for j in found))
