"""What the analyses have in common: means with 95 % intervals over cases, as numbers, cells, text.

Shapes: L blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.core.figure import Value
from errata.evaluation.statistics.intervals import Estimate, Intervals, Range

Scores = Mapping[str, Sequence[float]]
"""case -> its scores, or its scores per block [L]."""


class Summary:
    """Base of what an analysis reports. All its intervals are over the same resampled cases."""

    def __init__(self, cases: Sequence[str]) -> None:
        self.intervals = Intervals(cases)

    def mean(self, scores: Scores, within: Range | None = None) -> Estimate | None:
        """The mean over cases of a case's mean score; None without a score.

        within: the range of a score; without one, cases that all agree give no interval.
        """
        return self.intervals.mean([scores], [1.0], within)

    def value(self, scores: Scores, within: Range | None = None) -> Value:
        """`mean`, of cases with at least one score."""
        estimate = self.mean(scores, within)
        assert estimate is not None
        return as_value(estimate)

    def at(self, scores: Scores, index: int, within: Range | None = None) -> Value:
        """The mean of scores per block, at one of the blocks."""
        return self.value({case: [row[index]] for case, row in scores.items()}, within)

    def peak(self, scores: Scores, blocks: Sequence[int]) -> dict[str, Any]:
        """JSON-ready: the block with the highest mean, and the share of resamples that agree."""
        index, agree = self.intervals.peak(scores)
        return {"block": blocks[index], "agree": agree}


def as_value(estimate: Estimate) -> Value:
    return Value(estimate.value, *(estimate.ci95 or (None, None)))


def number(estimate: Estimate | None) -> float:
    """For heat maps: NaN where there is no estimate."""
    return estimate.value if estimate is not None else float("nan")


def with_ends(*names: str) -> tuple[str, ...]:
    """Columns of a table for `cells`: each name, then its two ends."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


def cells(mean: Estimate | Value | None) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) for a table."""
    if isinstance(mean, Estimate):
        mean = as_value(mean)
    return (None, None, None) if mean is None else (mean.value, mean.low, mean.high)


def text(
    mean: Estimate | Value | None,
    digits: int = 2,
    *,
    scale: float = 1,
    unit: str = "",
    to: str = "–",
) -> str:
    """`0.52 (0.40–0.61)`: the mean times `scale`, with its interval where there is one."""
    value, low, high = cells(mean)
    if value is None:
        return "–"
    out = f"{scale * value:.{digits}f}{unit}"
    if low is None or high is None:
        return out
    return f"{out} ({scale * low:.{digits}f}{to}{scale * high:.{digits}f})"


def spaced(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, in the middle of equal parts."""
    most = min(most, count)
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]
