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
"""Scores are rounded, so that the order in which a library sums cannot change a file's bytes."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; `ci95` is None with fewer than two units that count."""

    value: float
    ci95: tuple[float, float] | None
    units: int


class Bootstrap:
    """The same resampled units for every score of a run, so that scores stay comparable."""

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
        """Where the mean of unit -> [K] is highest, and in how many resamples it is there."""
        rows_LK = np.zeros((max(len(self._row), 1), len(next(iter(values.values())))))
        there_L = np.zeros(len(rows_LK))
        for unit, row in values.items():
            rows_LK[self._row[unit]], there_L[self._row[unit]] = row, 1.0
        best = int(rows_LK.sum(0).argmax())
        drawn_R = self._weights_RL @ there_L > 0
        at_R = (self._weights_RL @ rows_LK).argmax(1)[drawn_R]
        return best, _round((at_R == best).mean())

    def auc(
        self, above: Mapping[str, Sequence[float]], below: Mapping[str, Sequence[float]]
    ) -> Estimate | None:
        """The share of pairs (one of `above`, one of `below`) in order; an equal pair is half one.

        Pairs are of all units with all, as for one threshold that serves them all.
        """
        sides = [[(v, self._row[u]) for u, vs in side.items() for v in vs]
                 for side in (above, below)]  # fmt: skip
        if not all(sides):
            return None
        flat = np.array([v for side in sides for v, _ in side])
        values, place = np.unique(flat, return_inverse=True)
        where, counts_RV = np.split(place, [len(sides[0])]), []
        everyone_1L = np.ones((1, self._weights_RL.shape[1]))
        weights = np.concatenate([everyone_1L, self._weights_RL])
        for side, at in zip(sides, where, strict=True):
            order = np.argsort(at, kind="stable")
            rows = np.array([r for _, r in side])[order]
            sums = np.zeros((len(weights), len(values)))
            starts = np.flatnonzero(np.diff(at[order], prepend=-1))
            sums[:, at[order][starts]] = np.add.reduceat(weights[:, rows], starts, axis=1)
            counts_RV.append(sums)
        up, down = counts_RV
        lower = np.cumsum(down, axis=1) - down / 2
        pairs = up.sum(1) * down.sum(1)
        shares = (up * lower).sum(1)[pairs > 0] / pairs[pairs > 0]
        units = len({r for side in sides for _, r in side})
        if units < 2:
            return Estimate(_round(shares[0]), None, units)
        low, high = np.percentile(shares[1:], [2.5, 97.5])
        return Estimate(_round(shares[0]), (_round(low), _round(high)), units)

    def ratio(self, parts: Mapping[str, tuple[float, float]]) -> Estimate | None:
        """sum a / sum b over units, from unit -> (a, b); a weighted mean has a = sum w score.

        None where the weights sum to nothing, as in a resample that is then left out.
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
