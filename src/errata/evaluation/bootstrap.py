"""Percentile bootstrap over independent units, and means over groups of unequal size.

A bootstrap knows no spread where all units agree: 10 of 10 right would be 100 to 100. There the
interval is the exact one of Clopper and Pearson (1934): with 97.5 % confidence at most a share
p = 1 - 0.025^(1/n) of all units differs from the n that were seen, and none by more than to an end
of the range. So 10 of 10 right is 69.2 to 100, and no difference in 10 pairs is -30.8 to +30.8.
Where units differ in weight, n is their effective number (sum w)^2 / sum w^2 (Kish, 1965).

Shapes: L units (lanes of a run), G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
DIGITS = 6
"""Scores are rounded, so that the order of a sum cannot change the bytes of a file."""

WHERE_ALL_AGREE = "Clopper-Pearson"
TAIL = 0.025
"""What lies outside a 95 % interval, on each side."""

Floats = NDArray[np.float64]
Range = tuple[float, float]
"""The smallest and the largest value that a score can have."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    `ci95` is None with fewer than two units that have a score, and where all units agree in a value
    that has no known range.
    """

    value: float
    ci95: tuple[float, float] | None
    units: int


class Bootstrap:
    """Resamples units, the same way for every score of a run, so that scores are comparable."""

    def __init__(self, units: Sequence[str]) -> None:
        self._row = {unit: i for i, unit in enumerate(units)}
        n = max(len(self._row), 1)
        rng = np.random.default_rng(SEED)
        self._weights_RL: Floats = rng.multinomial(n, [1 / n] * n, size=RESAMPLES).astype(
            np.float64
        )

    def mean(
        self,
        groups: Sequence[Mapping[str, Sequence[float]]],
        mix: Sequence[float],
        within: Range | None = None,
    ) -> Estimate | None:
        """The mean over groups (weights `mix`) of each group's mean; a group maps unit -> scores.

        within: the range of a score. None when there is nothing to average. A resample without any
        score of a group is averaged over the other groups.
        """
        sums_LG = np.zeros((max(len(self._row), 1), len(groups)))
        counts_LG = np.zeros_like(sums_LG)
        for g, group in enumerate(groups):
            for unit, scores in group.items():
                sums_LG[self._row[unit], g] = sum(scores)
                counts_LG[self._row[unit], g] = len(scores)
        if not counts_LG.any():
            return None
        mix_G = np.asarray(mix, dtype=np.float64)
        value = _mixed(sums_LG.sum(0)[None], counts_LG.sum(0)[None], mix_G)[0]
        units = int(counts_LG.any(axis=1).sum())
        if units < 2:
            return Estimate(_round(value), None, units)
        resampled_R = _mixed(self._weights_RL @ sums_LG, self._weights_RL @ counts_LG, mix_G)
        total_G = counts_LG.sum(0)
        shares_LG = np.divide(counts_LG, total_G, out=np.zeros_like(counts_LG), where=total_G > 0)
        return _estimate(value, resampled_R, units, _effective(shares_LG @ mix_G), within)

    def peak(self, values: Mapping[str, Sequence[float]]) -> tuple[int, float]:
        """The index k at which the mean of unit -> [K] is highest, and the share of resamples in
        which it is the same k.
        """
        best, peak_R = self._peaks(values)
        return best, _round((peak_R == best).mean())

    def peak_range(self, values: Mapping[str, Sequence[float]]) -> tuple[int, int]:
        """The 95 % interval of the index that `peak` finds, over the resamples."""
        _, peak_R = self._peaks(values)
        low, high = np.percentile(peak_R, [100 * TAIL, 100 * (1 - TAIL)], method="nearest")
        return int(low), int(high)

    def _peaks(self, values: Mapping[str, Sequence[float]]) -> tuple[int, NDArray[np.intp]]:
        """The index of the highest mean, and that of each resample that has a unit with values."""
        rows_LK = np.zeros((max(len(self._row), 1), len(next(iter(values.values())))))
        has_L = np.zeros(len(rows_LK))
        for unit, row in values.items():
            rows_LK[self._row[unit]], has_L[self._row[unit]] = row, 1.0
        any_R = self._weights_RL @ has_L > 0
        return int(rows_LK.sum(0).argmax()), (self._weights_RL @ rows_LK).argmax(1)[any_R]

    def auc(
        self, above: Mapping[str, Sequence[float]], below: Mapping[str, Sequence[float]]
    ) -> Estimate | None:
        """The share of pairs (one of `above`, one of `below`) in order; an equal pair counts half.

        The pairs are over all units together, as for one threshold for all of them.
        """
        if not any(above.values()) or not any(below.values()):
            return None
        flat = [(v, self._row[unit]) for unit, values in below.items() for v in values]
        value_N, row_N = np.array([v for v, _ in flat]), np.array([r for _, r in flat])
        units = len(self._row)
        order_LL = np.zeros((units, units))
        for unit, values in above.items():
            sorted_M = np.sort(np.asarray(values, dtype=np.float64))
            not_above = np.searchsorted(sorted_M, value_N, "left") + np.searchsorted(
                sorted_M, value_N, "right"
            )
            order_LL[self._row[unit]] += np.bincount(
                row_N, weights=len(sorted_M) - not_above / 2, minlength=units
            )
        size_L2 = np.zeros((units, 2))
        for k, side in enumerate((above, below)):
            for unit, values in side.items():
                size_L2[self._row[unit], k] = len(values)
        auc = order_LL.sum() / size_L2.sum(0).prod()
        count = int((size_L2.sum(1) > 0).sum())
        if count < 2:
            return Estimate(_round(auc), None, count)
        pairs_R = (self._weights_RL @ size_L2).prod(1)
        right_R = ((self._weights_RL @ order_LL) * self._weights_RL).sum(1)
        aucs_R = (right_R / np.maximum(pairs_R, 1))[pairs_R > 0]
        fewer = min(_effective(size_L) for size_L in size_L2.T)
        return _estimate(auc, aucs_R, count, fewer, (0.0, 1.0))

    def ratio(
        self, parts: Mapping[str, tuple[float, float]], within: Range | None = None
    ) -> Estimate | None:
        """sum a / sum b over units, from unit -> (a, b); a weighted mean has a = sum w score.

        within: the range of a score. None where the weights sum to 0; a resample in which they do
        is left out.
        """
        parts_L2 = np.zeros((max(len(self._row), 1), 2))
        for unit, part in parts.items():
            parts_L2[self._row[unit]] = part
        top, bottom = parts_L2.sum(0)
        if bottom <= 0:
            return None
        units = int((parts_L2[:, 1] > 0).sum())
        if units < 2:
            return Estimate(_round(top / bottom), None, units)
        sums_R2 = self._weights_RL @ parts_L2
        kept_R2 = sums_R2[sums_R2[:, 1] > 0]
        ratios_R = kept_R2[:, 0] / kept_R2[:, 1]
        return _estimate(top / bottom, ratios_R, units, _effective(parts_L2[:, 1]), within)


def _estimate(
    value: float, resampled_R: Floats, units: int, effective: float, within: Range | None
) -> Estimate:
    """The percentile interval, or the exact one where no resample differs."""
    low, high = map(_round, np.nanpercentile(resampled_R, [2.5, 97.5]))
    if low < high:
        return Estimate(_round(value), (low, high), units)
    return Estimate(_round(value), agreed(value, effective, within), units)


def agreed(value: float, units: float, within: Range | None) -> tuple[float, float] | None:
    """The 95 % interval of a mean where all `units` have the same value; None without a range."""
    if within is None or not within[0] <= _round(value) <= within[1]:
        return None
    share = 1 - TAIL ** (1 / units)
    low, high = within
    return _round(value - share * (value - low)), _round(value + share * (high - value))


def _effective(weights_L: Floats) -> float:
    """How many units of equal weight say as much as these."""
    return float(weights_L.sum() ** 2 / (weights_L**2).sum())


def _mixed(sums_RG: Floats, counts_RG: Floats, mix_G: Floats) -> Floats:
    """sum_g mix_g mean_g over the groups that have a count; NaN where none has."""
    has_RG = counts_RG > 0
    means_RG = np.divide(sums_RG, counts_RG, out=np.zeros_like(sums_RG), where=has_RG)
    total_R = (has_RG * mix_G).sum(1)
    out_R = np.full(len(sums_RG), np.nan)
    np.divide((means_RG * mix_G).sum(1), total_R, out=out_R, where=total_R > 0)
    return out_R


def _round(x: float) -> float:
    return round(float(x), DIGITS) + 0.0  # + 0.0: no negative zero in a file
