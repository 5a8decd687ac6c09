"""Percentile bootstrap over independent units, and means over groups of unequal size.

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

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; `ci95` is None with fewer than two units that have a score."""

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
        self, groups: Sequence[Mapping[str, Sequence[float]]], mix: Sequence[float]
    ) -> Estimate | None:
        """The mean over groups (weights `mix`) of each group's mean; a group maps unit -> scores.

        None when there is nothing to average. A resample without any score of a group is averaged
        over the other groups.
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
        low, high = np.nanpercentile(resampled_R, [2.5, 97.5])
        return Estimate(_round(value), (_round(low), _round(high)), units)

    def peak(self, values: Mapping[str, Sequence[float]]) -> tuple[int, float]:
        """The index k at which the mean of unit -> [K] is highest, and the share of resamples in
        which it is the same k.
        """
        rows_LK = np.zeros((max(len(self._row), 1), len(next(iter(values.values())))))
        has_L = np.zeros(len(rows_LK))
        for unit, row in values.items():
            rows_LK[self._row[unit]], has_L[self._row[unit]] = row, 1.0
        best = int(rows_LK.sum(0).argmax())
        any_R = self._weights_RL @ has_L > 0
        peak_R = (self._weights_RL @ rows_LK).argmax(1)[any_R]
        return best, _round((peak_R == best).mean())

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
        low, high = np.percentile((right_R / np.maximum(pairs_R, 1))[pairs_R > 0], [2.5, 97.5])
        return Estimate(_round(auc), (_round(low), _round(high)), count)

    def ratio(self, parts: Mapping[str, tuple[float, float]]) -> Estimate | None:
        """sum a / sum b over units, from unit -> (a, b); a weighted mean has a = sum w score.

        None where the weights sum to 0; a resample in which they do is left out.
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
        low, high = np.percentile(kept_R2[:, 0] / kept_R2[:, 1], [2.5, 97.5])
        return Estimate(_round(top / bottom), (_round(low), _round(high)), units)


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
