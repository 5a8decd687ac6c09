"""Judging: saved pictures to verdicts, in a step of its own that goes on where it stopped.

A verdict is kept under the picture's content, the view and the judge's identity. Equal pictures
under one view are judged once; a picture that changed is judged again, and so is one that something
stood in the way of for the moment. No torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errata.core.files import append_lines, write_json
from errata.core.judge import RETRY, Judge, may_retry
from errata.core.types import JudgeQuestion, digest
from errata.evaluation.run_folder import JudgedImage, RunFolder, read_run, read_verdicts

CHUNK = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PendingPicture:
    """One picture of a run, to be judged: its path there, its content, what is asked about it."""

    image: str
    sha256: str
    view: JudgeQuestion
    key: str

    @property
    def content(self) -> tuple[str, str]:
        return self.sha256, self.key


@dataclass
class JudgeSummary:
    """What a judging did: new verdicts, verdicts that were there, and why pictures have none."""

    judged: int = 0
    kept: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)


def judge_run(run: Path, judge: Judge, *, progress: Progress | None = None) -> JudgeSummary:
    """Judges every picture of a run that `judge` has not judged yet; its verdicts then count.

    Raises what the judge raises, after what was judged until then has been written.
    """
    _trim(run / "verdicts.jsonl")
    tally = JudgeSummary()
    hung = _pictures(read_run(run), tally)
    known = read_verdicts(run, judge.identity)
    by_content = {(j.sha256, j.view): j.verdict for j in known.values()}
    due: dict[tuple[str, str], list[PendingPicture]] = {}
    copied = []
    for one in hung:
        there = known.get((one.image, one.key))
        if there is not None and there.sha256 == one.sha256:
            tally.kept += 1
        elif one.content in by_content:
            verdict = by_content[one.content]
            copied.append(JudgedImage(one.image, one.sha256, one.key, judge.identity, verdict))
        else:
            due.setdefault(one.content, []).append(one)
    append_lines(run / "verdicts.jsonl", copied)
    tally.judged += len(copied)
    groups = list(due.values())
    for start in range(0, len(groups), CHUNK):
        if progress is not None:
            progress("judging pictures", start, len(groups))
        _judge_some(run, judge, groups[start : start + CHUNK], tally)
    if progress is not None and groups:
        progress("judging pictures", len(groups), len(groups))
    write_json(run / "judging.json", {"schema": 1, "judge": judge.identity})
    return tally


def _judge_some(
    run: Path, judge: Judge, groups: Sequence[Sequence[PendingPicture]], tally: JudgeSummary
) -> None:
    """One verdict per group of equal pictures, written for each of them."""
    verdicts = judge.judge([(run / group[0].image, group[0].view) for group in groups])
    lines = []
    for group, verdict in zip(groups, verdicts, strict=True):
        if may_retry(verdict):
            tally.waiting[verdict.note.removeprefix(RETRY)] += len(group)
            continue
        if verdict.meets is None:
            tally.without[verdict.note] += len(group)
        tally.judged += len(group)
        lines += [JudgedImage(p.image, p.sha256, p.key, judge.identity, verdict) for p in group]
    append_lines(run / "verdicts.jsonl", lines)


def _pictures(folder: RunFolder, tally: JudgeSummary) -> list[PendingPicture]:
    """The pictures that answers name, in their order; a file that is gone waits."""
    views = {(c.id, p.id): p.view for c in folder.cases.values() for p in c.probes}
    found = []
    for (case, probe, _), answer in folder.answers.items():
        view = views.get((case, probe))
        for image in answer.images if view is not None else ():
            assert view is not None
            try:
                content = hashlib.sha256((folder.path / image).read_bytes()).hexdigest()
            except OSError:
                tally.waiting[f"a picture is missing: {image}"] += 1
                continue
            found.append(PendingPicture(image, content, view, digest(view)))
    return found


def _trim(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as f:
            f.truncate(whole)
