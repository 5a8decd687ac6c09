"""What the pictures show, by the verdicts of a judge.

`vqa`: the share of a probe's pictures (one per seed) that show the target; as `judge_old` the share
that still show the old answer, where the judge says what it read. `i_locality`: the share that show
what the picture of the same seed showed before. Pictures without a verdict are left out of a mean
and counted under `unjudged`; a probe none of whose pictures was judged is unscored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.metric import Metric, ScoredProbe
from errata.core.text import normalise
from errata.core.types import DRAWN_KINDS, Answer, Probe, Verdict


class JudgeScore(Metric):
    """`judge`, `judge_old` and `unjudged`. Unscored: probes without a judged picture."""

    name = "judge"
    kinds = DRAWN_KINDS

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind == "i_locality":
            pairs = zip(before.verdicts, after.verdicts, strict=False)
            return _mean([_same(a, b) for a, b in pairs])
        return _mean([v.meets for v in after.verdicts])

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case(rows)
        for row in rows:
            if row.probe.kind not in self.kinds:
                continue
            head = f"{row.probe.kind}/{row.probe.group}" if row.probe.group else row.probe.kind
            yield f"{head}.unjudged", _unjudged(row.after)
            view = row.probe.view
            if row.probe.kind == "vqa" and view is not None and view.old:
                old = [_reads(v, view.old) for v in row.after.verdicts]
                yield f"{head}.judge_old", _mean(old)


def _mean(values: Sequence[bool | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _same(before: Verdict, after: Verdict) -> bool | None:
    """Whether two pictures show the same; a judge that says only whether is compared by that."""
    if before.meets is None or after.meets is None:
        return None
    if before.answer and after.answer:
        return normalise(before.answer) == normalise(after.answer)
    return before.meets == after.meets


def _reads(verdict: Verdict, answer: str) -> bool | None:
    if verdict.meets is None or not verdict.answer:
        return None
    return normalise(verdict.answer) == normalise(answer)


def _unjudged(after: Answer) -> float:
    """The share of pictures without a verdict; all of them where nothing was drawn."""
    if not after.images:
        return 1.0
    judged = sum(v.meets is not None for v in after.verdicts)
    return 1 - judged / len(after.images)
