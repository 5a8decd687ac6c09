"""Reads and writes a run folder, and resumes an unfinished run (`RunWriter.resume`). No torch.

manifest.json   what was run, with which settings and versions
plan.json       the cases, the panel, the lanes, what was dropped and why; fixed before any edit
before.jsonl    one `Answer` per probe (step -1); the panel's under case "panel". Nothing is drawn
                for the plan: what a drawn probe gave before an edit is its answer tagged `pre`
answers.jsonl   one `Answer` per question after edits; the panel's under "panel/<lane>"
done.jsonl      one `FinishedUnit` a line, with the length of answers.jsonl after that unit
images/         the pictures that answers name
verdicts.jsonl  the verdicts of judges, one `JudgedImage` a line; the last line on an image counts
judging.json    the judge whose verdicts count
scores.json     computed from the above
scored.json     sha256 of the files that scores.json was computed from
timing.json     seconds and memory; not in scores.json, which must not depend on the machine

A killed run resumes after its last finished unit. The answers of a unit are appended in one write;
then done.jsonl gets a line with the new length of answers.jsonl. On resume, whatever lies behind
that length is cut off, so that an interrupted run ends with the same bytes as any other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from errata.core.config import saved_settings
from errata.core.errors import BadRun
from errata.core.files import (
    append_bytes,
    append_lines,
    check_folder,
    dumps,
    exists,
    from_plain,
    git_commit,
    lines_of,
    read_bytes,
    read_lines,
    shortened,
    visible,
    write_bytes,
    write_json,
    writing,
)
from errata.core.formats.counts import counted
from errata.core.formats.run_files import HASHES, judge_of, read_manifest, read_stored_plan
from errata.core.measure.metric import ScoredProbe
from errata.core.types import (
    Answer,
    Case,
    JudgeQuestion,
    Probe,
    Verdict,
    digest,
)
from errata.evaluation.limits import is_raised, raise_limit, same_answers, same_plan
from errata.evaluation.other_scopes import unscored_probes

PANEL = "panel"
NOT_JUDGED = "not judged yet"
#: Files that are written under a temporary name first; a kill may leave such a name behind.
WRITTEN_WHOLE = (
    "plan.json",
    "before.jsonl",
    "manifest.json",
    "done.jsonl",
    "scores.json",
    HASHES,
    "timing.json",
    "judging.json",
)


# -- writing ------------------------------------------------------------------------------------


@dataclass
class UnitTiming:
    """Seconds, counts and peak memory (MB) of one unit.

    Peaks are those of the edits and of the questions alone (see `memory.measured_peak`).
    """

    edit_seconds: float = 0.0
    edits: int = 0
    ask_seconds: float = 0.0
    asked: int = 0
    edit_peak_mb: float | None = None
    ask_peak_mb: float | None = None
    searches: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    demonstrations_dropped: int = 0


@dataclass
class Phase:
    """Seconds and peak memory (MB) of what runs once, before the units."""

    seconds: float = 0.0
    peak_mb: float | None = None


@dataclass(kw_only=True)
class FinishedUnit(UnitTiming):
    """One finished unit: a line of done.jsonl. length: bytes of answers.jsonl after it."""

    unit: str
    length: int

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be summed up in timing.json."""
        if any(
            not isinstance(s.get("steps", 0), (int, float)) or not {"steps", "reached"} <= {*s}
            for s in self.searches
            if s
        ):
            raise ValueError("a search needs steps, a number, and reached")
        if not 0 <= self.edits <= self.length:
            raise ValueError(f"{self.edits} edits have {self.length} bytes of answers")


def check_out(path: Path, **settings: Any) -> None:
    """Raises BadRun or BadOutput if no run can be written to the folder, before any work.

    A run with these settings in it, which may be resumed, and what a killed start of one left are
    accepted.
    """
    check_folder(path)
    if exists(path / "manifest.json"):
        check_settings(path, read_manifest(path), settings)
    elif any(name not in ("plan.json", "before.jsonl") for name in visible(path)):
        raise BadRun(f"{path} is not empty and holds no run. Choose another --out.")


def check_settings(path: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises BadRun if the run with this manifest has other settings; `limit` may be raised."""
    raised = is_raised(manifest.get("limit"), settings.get("limit"))
    different = [
        k for k, v in settings.items()
        if manifest.get(k) != from_plain(v) and not (raised and k == "limit")
    ]  # fmt: skip
    if different:
        details = ", ".join(
            f"{k} ({shortened(manifest.get(k), 200)} there, {shortened(settings[k], 200)} now)"
            for k in different[:3]
        )
        raise BadRun(
            f"{path} holds another run: {details} differ. "
            "Choose another --out, or delete that folder."
        )


def _defaults(config: type) -> dict[str, Any]:
    """The default of every setting that has one, as JSON holds it."""
    known = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}


class RunWriter:
    """Writes the run in the folder `path`: `start`, `resume`, then `add` for every unit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: list[FinishedUnit] = []

    def start(
        self,
        settings: Mapping[str, Any],
        plan: Mapping[str, Any],
        before: Sequence[Answer],
        command: str = "",
        config: type | None = None,
        root: str = "",
    ) -> None:
        """Starts the folder, or checks that it holds the same run, unchanged. Raises BadRun.

        A run with a lower `limit` is continued with the further cases of the plan.

        settings: what makes two runs the same run. plan: the content of plan.json. config: the
        editor's `Config`, which knows the old names of settings. root: folder of the benchmark's
        pictures.
        """
        self._remove_temporary()
        planned = {
            "plan.json": (dumps(plan, indent=1) + "\n").encode(),
            "before.jsonl": lines_of(before),
        }
        if (self.path / "manifest.json").exists():
            self._check_same(settings, planned, config)
            return
        # a run killed before its manifest, which is written last, holds only these
        check_out(self.path)
        for name, data in planned.items():
            write_bytes(self.path / name, data)
        manifest = {
            **settings,
            "command": command,
            "root": root,
            "git": git_commit(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.path / "manifest.json", manifest)

    def check(self, settings: Mapping[str, Any], config: type | None = None) -> None:
        """Raises BadRun if the folder holds a run with other settings; before any work."""
        if not exists(self.path / "manifest.json"):
            return
        manifest = read_manifest(self.path)
        for name in ("arguments", "config"):
            if config is not None and isinstance(manifest.get(name), dict):
                manifest[name] = saved_settings(config, manifest[name])
        if config is not None and manifest.get("config"):  # settings that are newer than the run
            manifest["config"] = {**_defaults(config), **manifest["config"]}
        check_settings(self.path, manifest, settings)

    def _check_same(
        self, settings: Mapping[str, Any], planned: Mapping[str, bytes], config: type | None
    ) -> None:
        self.check(settings, config)
        manifest, limit = read_manifest(self.path), settings.get("limit")
        if is_raised(manifest.get("limit"), limit):
            raise_limit(self.path, manifest, planned, limit)
            return
        alike = {"plan.json": same_plan, "before.jsonl": same_answers}
        for name, data in planned.items():
            file = self.path / name
            stored = read_bytes(file) if file.exists() else None
            if stored != data and (stored is None or not alike[name](stored, data)):
                raise BadRun(
                    f"{file} is not what this run began with. Delete the folder and run again."
                )

    def _remove_temporary(self) -> None:
        """Removes temporary files that a kill left behind."""
        for name in WRITTEN_WHOLE:
            for file in self.path.glob(f".{name}.*"):
                file.unlink(missing_ok=True)
        for file in self.path.glob("images/*/.*.png.*"):
            file.unlink(missing_ok=True)

    def resume(self, units: Sequence[str]) -> int:
        """Number of finished units, of the planned ids; a half-written one is cut off.

        Raises BadRun when the files contradict each other.
        """
        done, answers = self.path / "done.jsonl", self.path / "answers.jsonl"
        self.finished = read_lines(done, FinishedUnit)
        if [f.unit for f in self.finished] != list(units[: len(self.finished)]):
            raise BadRun(f"{done} does not fit plan.json. Delete the folder and run again.")
        length = self.finished[-1].length if self.finished else 0
        size = answers.stat().st_size if answers.exists() else 0
        if size < length:
            raise BadRun(
                f"{answers} is shorter than done.jsonl says. Delete the folder and run again."
            )
        if size > length:
            with writing(answers):
                os.truncate(answers, length)
        if self.finished:
            write_bytes(done, lines_of(self.finished))
        else:
            done.unlink(missing_ok=True)
        return len(self.finished)

    def add(self, unit: str, answers: Sequence[Answer], timing: UnitTiming) -> None:
        """Writes a unit's answers, then the line that says that the unit is finished."""
        self.add_lines(unit, lines_of(answers), timing)

    def add_lines(self, unit: str, answers: bytes, timing: UnitTiming) -> None:
        """`add`, of answers that are JSON lines already."""
        path = self.path / "answers.jsonl"
        append_bytes(path, answers)
        finished = FinishedUnit(unit=unit, length=path.stat().st_size, **asdict(timing))
        append_lines(self.path / "done.jsonl", [finished])
        self.finished.append(finished)

    def write_timing(self, before: Phase, prepare: Phase) -> None:
        """Writes timing.json, summed over all finished units.

        peak_mb is that of each phase; files without `peak_of` have the peak of the whole process
        there.
        """
        done = self.finished
        edits, asked = sum(d.edits for d in done), sum(d.asked for d in done)
        edit_mb = max((d.edit_peak_mb for d in done if d.edit_peak_mb is not None), default=None)
        ask_mb = max((d.ask_peak_mb for d in done if d.ask_peak_mb is not None), default=None)
        phases = {
            "before": {"seconds": before.seconds, "count": 1, "peak_mb": before.peak_mb},
            "prepare": {"seconds": prepare.seconds, "count": 1, "peak_mb": prepare.peak_mb},
            "edit": {
                "seconds": sum(d.edit_seconds for d in done), "count": edits, "peak_mb": edit_mb,
            },
            "ask": {
                "seconds": sum(d.ask_seconds for d in done), "count": asked, "peak_mb": ask_mb,
            },
        }  # fmt: skip
        searches = [s for d in done for s in d.searches if s]
        n = len(searches)
        timing = {
            "phases": phases,
            "peak_of": "phase",
            "failed": [case for d in done for case in d.failed],
            "demonstrations_dropped": sum(d.demonstrations_dropped for d in done),
            "edit_seconds": [d.edit_seconds / d.edits for d in done for _ in range(d.edits)],
            "search": {
                "n": n,
                "mean_steps": sum(s["steps"] for s in searches) / n if n else None,
                "reached": sum(bool(s["reached"]) for s in searches) / n if n else None,
            },
        }
        write_json(self.path / "timing.json", timing)


# -- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """A judge's verdict on one image. image: path in the run folder; view: digest of the question.

    sha256: of the image file.
    """

    image: str
    sha256: str
    view: str
    judge: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class CaseAnswers:
    """The scored probes of one case (or of a lane's panel); `position` in the lane, from 0."""

    case: str
    lane: str
    position: int
    origin: str | None
    rows: tuple[ScoredProbe, ...]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run as `read_run` returns it. `lanes` maps a lane's id to its case ids, in order.

    unscored: the questions that were asked and are not scored, as `<case>/<probe>`. plan: as it is
    stored, without its cases.
    """

    path: Path
    manifest: Mapping[str, Any]
    plan: Mapping[str, Any]
    cases: Mapping[str, Case]
    panel: tuple[Probe, ...]
    lanes: Mapping[str, tuple[str, ...]]
    before: Mapping[tuple[str, str], Answer]
    answers: Mapping[tuple[str, str, str], Answer]
    unscored: frozenset[str] = frozenset()
    _asked: dict[str, list[CaseAnswers]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def over(self) -> str:
        """What intervals are over: `lanes`, or the `cases` of the only lane."""
        return str(self.plan.get("over") or "lanes")

    @property
    def units(self) -> list[str]:
        """The independent units of intervals."""
        if self.over == "lanes":
            return list(self.lanes)
        return [*self.cases, *(f"{PANEL}/{lane}" for lane in self.lanes)]

    def asked(self, tag: str = "") -> list[CaseAnswers]:
        """Every planned case with its answers of `tag`, then each lane's panel.

        Raises BadRun when some are missing. Under a tag other than "" a protocol may ask only some
        kinds of probes, or only some cases: an answer is missing there if other cases have one.
        """
        if tag not in self._asked:
            there = not tag or any(key[2] == tag for key in self.answers)
            self._asked[tag] = self._read_asked(tag) if there else []
        return self._asked[tag]

    def _read_asked(self, tag: str) -> list[CaseAnswers]:
        missing: list[str] = []
        cases: list[CaseAnswers] = []
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
                elif probe.kind in kinds and self._expected(probe, tag):
                    missing.append(f"{case}/{probe.id}{f' ({tag})' if tag else ''}")
            origin = self.cases[case].origin if case in self.cases else None
            cases.append(CaseAnswers(case, lane, position, origin, tuple(rows)))
        if missing:
            part = self.manifest.get("shard")
            remedy = (
                f"It is shard {part} of a run: put all shards together with `errata merge`."
                if part
                else "Repeat the same `errata bench` command to resume the run."
            )
            raise BadRun(
                f"{self.path} is incomplete: it lacks {counted(len(missing), 'answer')}, first "
                f"{missing[0]}. {remedy}"
            )
        return cases

    def _expected(self, probe: Probe, tag: str) -> bool:
        """Whether a probe is asked under `tag`, where its kind is."""
        return tag not in ("oracle", "ceiling") or probe.aids is not None

    def _slots(self) -> Iterator[tuple[str, str, int, tuple[Probe, ...], str]]:
        """(case, lane, position, probes, case of the before-answers), panels last."""
        for lane, ids in self.lanes.items():
            for position, case in enumerate(ids):
                probes = self.cases[case].probes
                if self.unscored:
                    probes = tuple(p for p in probes if f"{case}/{p.id}" not in self.unscored)
                yield case, lane, position, probes, case
        for lane in self.lanes if self.panel else ():
            yield f"{PANEL}/{lane}", lane, 0, self.panel, PANEL


def read_plan(path: Path) -> dict[str, Any]:
    """plan.json without its cases. Raises BadRun."""
    return read_stored_plan(path)[0]


def read_run(path: Path) -> RunFolder:
    """Raises BadRun when the folder is not a run, or contradicts itself."""
    manifest, (plan, planned) = read_manifest(path), read_stored_plan(path)
    cases = {c.id: c for c in planned.cases}
    lanes = {lane.id: lane.cases for unit in planned.units for lane in unit.lanes}
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
        panel=planned.panel,
        lanes=lanes,
        before={(case, probe): a for (case, probe, _), a in before.items()},
        answers=answers,
        unscored=unscored_probes(cases, planned.dropped),
    )


def _unique(path: Path, answers: Sequence[Answer]) -> dict[tuple[str, str, str], Answer]:
    by_key: dict[tuple[str, str, str], Answer] = {}
    for answer in answers:
        key = (answer.case, answer.probe, answer.tag)
        if key in by_key:
            raise BadRun(
                f"{path} answers {answer.case}/{answer.probe} twice. Two processes may have "
                "written to one folder: delete the run and repeat it."
            )
        by_key[key] = answer
    return by_key


def read_verdicts(run: Path, judge: str) -> dict[tuple[str, str], JudgedImage]:
    """(image, digest of the question) -> the last verdict of `judge`."""
    lines = read_lines(run / "verdicts.jsonl", JudgedImage)
    return {(j.image, j.view): j for j in lines if j.judge == judge}


def _with_verdicts(
    answer: Answer, view: JudgeQuestion, verdicts: Mapping[tuple[str, str], JudgedImage]
) -> Answer:
    question = digest(view)
    judged = (verdicts.get((image, question)) for image in answer.images)
    none = Verdict("", note=NOT_JUDGED)
    return replace(answer, verdicts=tuple(j.verdict if j else none for j in judged))
