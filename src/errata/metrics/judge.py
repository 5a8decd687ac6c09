"""What the generated images show, by the verdicts of a judge.

`vqa`: the share of a probe's images (one per seed) that show the target; as `judge_old` the share
that still show the old answer, where the judge says what it read. `i_locality`: the share that show
what the image of the same seed showed before the edit. Images without a verdict are left out of a
mean and counted under `unjudged`; a probe without any judged image is unscored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from errata.core.kinds import ProbeKind
from errata.core.measure.judge import same_verdict
from errata.core.measure.metric import Metric, ScoredProbe, Scorer, kind_key
from errata.core.text import same_answer
from errata.core.types import Answer, Probe, Verdict


class JudgeScore(Metric):
    """`judge`, `judge_old` and `unjudged`. Unscored: probes without a judged image."""

    name = "judge"
    heading = "Judge"
    meaning = (
        "The share of generated images that show the target, or, where nothing should change, what "
        "the image of the same seed showed before the edit, as a judge reads them."
    )
    more_scorers = (
        Scorer("judge_old", "Judge, old", "The share of images that still show the old answer."),
        Scorer("unjudged", "Not judged", "The share of images without a verdict."),
    )

    @classmethod
    def applies(cls, kind: ProbeKind) -> bool:
        return kind.drawn

    def score(self, before: Answer, after: Answer, probe: Probe) -> float | None:
        if probe.kind_info.side == "locality":
            pairs = zip(before.verdicts, after.verdicts, strict=False)
            return _mean([same_verdict(a, b) for a, b in pairs])
        return _mean([v.meets for v in after.verdicts])

    def score_case(self, rows: Sequence[ScoredProbe]) -> Iterator[tuple[str, float | None]]:
        yield from super().score_case(rows)
        for row in rows:
            kind, view = row.probe.kind_info, row.probe.view
            if not kind.drawn:
                continue
            head = kind_key(row.probe)
            yield f"{head}.unjudged", _unjudged(row.after)
            if kind.side == "target" and view is not None and view.old:
                old = [_reads(v, view.old) for v in row.after.verdicts]
                yield f"{head}.judge_old", _mean(old)


def _mean(values: Sequence[bool | None]) -> float | None:
    judged = [v for v in values if v is not None]
    return sum(judged) / len(judged) if judged else None


def _reads(verdict: Verdict, answer: str) -> bool | None:
    if verdict.meets is None or not verdict.answer:
        return None
    return same_answer(verdict.answer, answer)


def _unjudged(after: Answer) -> float:
    """The share of images without a verdict; 1 where no image was generated."""
    if not after.images:
        return 1.0
    judged = sum(v.meets is not None for v in after.verdicts)
    return 1 - judged / len(after.images)
