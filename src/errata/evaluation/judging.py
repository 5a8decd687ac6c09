"""Runs a judge over the saved pictures of a run. A stopped judging is resumed. No torch.

A verdict is stored with the sha256 of the picture, the digest of the question (`view`) and the
judge's identity. Equal pictures with one question are judged once. A picture that changed is judged
again, and so is one whose judging failed for a temporary reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errata.core import registry
from errata.core.errors import BadImage
from errata.core.files import append_lines, read_bytes, whole_lines, write_json
from errata.core.formats.run_files import read_manifest
from errata.core.locks import locked
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.judge import RETRY, Judge, may_retry
from errata.core.types import JudgeQuestion, Verdict, digest
from errata.evaluation.run_folder import JudgedImage, RunFolder, read_run, read_verdicts
from errata.io.images import within_root

CHUNK = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PendingPicture:
    """A picture to be judged: its path in the run, sha256, the question, and its digest."""

    image: str
    sha256: str
    view: JudgeQuestion
    key: str

    @property
    def content(self) -> tuple[str, str]:
        return self.sha256, self.key


@dataclass
class JudgeSummary:
    """Counts of new and of earlier verdicts; why pictures wait for a retry, or cannot be judged."""

    judged: int = 0
    kept: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)


def judge_run(run: Path, judge: Judge, *, progress: Progress | None = None) -> JudgeSummary:
    """Judges every picture that `judge` has not judged yet; from then on its verdicts count.

    Verdicts are written in chunks. An error of the judge is raised; earlier chunks are kept.
    Raises InUse while another process works in the run.
    """
    read_manifest(run)  # a folder that holds no run is not written to
    with locked(run):
        return _judge_run(run, judge, progress)


def _judge_run(run: Path, judge: Judge, progress: Progress | None) -> JudgeSummary:
    whole_lines(run / "verdicts.jsonl")
    summary = JudgeSummary()
    pictures = _pictures(read_run(run), summary)
    judged = read_verdicts(run, judge.identity)
    by_content = {(j.sha256, j.view): j.verdict for j in judged.values()}
    due: dict[tuple[str, str], list[PendingPicture]] = {}
    copied = []
    for picture in pictures:
        earlier = judged.get((picture.image, picture.key))
        if earlier is not None and earlier.sha256 == picture.sha256:
            summary.kept += 1
        elif picture.content in by_content:
            copied.append(_line(picture, judge, by_content[picture.content]))
        else:
            due.setdefault(picture.content, []).append(picture)
    append_lines(run / "verdicts.jsonl", copied)
    summary.judged += len(copied)
    groups = list(due.values())
    for start in range(0, len(groups), CHUNK):
        if progress is not None:
            progress("judging pictures", start, len(groups))
        _judge_some(run, judge, groups[start : start + CHUNK], summary)
    if progress is not None and groups:
        progress("judging pictures", len(groups), len(groups))
    write_json(run / "judging.json", {"schema": 1, "judge": judge.identity})
    return summary


def own_judge(spec: BenchmarkSpec, tasks: Iterable[str]) -> str:
    """Name of the judge that the benchmark names for all of these tasks; "" if there is none."""
    benchmark = registry.load("benchmarks", spec.name)()
    names = {str(benchmark.judge(task)) for task in tasks}
    return names.pop() if len(names) == 1 else ""


def _judge_some(
    run: Path, judge: Judge, groups: Sequence[Sequence[PendingPicture]], summary: JudgeSummary
) -> None:
    """One verdict per group of equal pictures, written for each of them."""
    verdicts = judge.judge([(run / group[0].image, group[0].view) for group in groups])
    lines = []
    for group, verdict in zip(groups, verdicts, strict=True):
        if may_retry(verdict):
            summary.waiting[verdict.note.removeprefix(RETRY)] += len(group)
            continue
        if verdict.meets is None:
            summary.without[verdict.note] += len(group)
        summary.judged += len(group)
        lines += [_line(picture, judge, verdict) for picture in group]
    append_lines(run / "verdicts.jsonl", lines)


def _line(picture: PendingPicture, judge: Judge, verdict: Verdict) -> JudgedImage:
    return JudgedImage(picture.image, picture.sha256, picture.key, judge.identity, verdict)


def _pictures(folder: RunFolder, summary: JudgeSummary) -> list[PendingPicture]:
    """The pictures that answers name, in their order. A missing file is counted as waiting."""
    views = {(c.id, p.id): p.view for c in folder.cases.values() for p in c.probes}
    pictures = []
    for (case, probe, _), answer in folder.answers.items():
        view = views.get((case, probe))
        for image in answer.images if view is not None else ():
            assert view is not None
            try:
                path = within_root(folder.path, image)
                content = hashlib.sha256(read_bytes(path, BadImage)).hexdigest()
            except BadImage:
                summary.waiting[f"a picture is missing: {image}"] += 1
                continue
            pictures.append(PendingPicture(image, content, view, digest(view)))
    return pictures
