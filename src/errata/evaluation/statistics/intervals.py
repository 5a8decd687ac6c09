"""Means of a run's scores with 95 % intervals that hold for a few independent units too.

An interval is Student's t on what each unit contributes: the jackknife, which leaves out one unit
at a time, gives the standard error of any mean, ratio or AUC, whatever the sizes of the units. A
score with a range gets its interval on the logit scale, so that it stays within the range and is
longer towards the middle. A percentile bootstrap over 10 units covers 88 to 93 % (docs/adr/0009).

Where all units agree there is no spread to see: 10 of 10 right would be 100 to 100. There the
interval is the exact one of Clopper and Pearson (1934): with 97.5 % confidence at most a share
p = 1 - 0.025^(1/n) of all units differs from the n that were seen, and none by more than to an end
of the range. So 10 of 10 right is 69.2 to 100, and no difference in 10 pairs is -30.8 to +30.8.
Where units differ in weight, n is their effective number (sum w)^2 / sum w^2 (Kish, 1965).

Shapes: L units (lanes of a run), G groups, R resamples, S runs (training seeds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
DIGITS = 6
"""Scores are rounded, so that the order of a sum cannot change the bytes of a file."""

METHOD = "Student t, jackknife"
WHERE_ALL_AGREE = "Clopper-Pearson"
TAIL = 0.025
"""What lies outside a 95 % interval, on each side."""

Floats = NDArray[np.float64]
Range = tuple[float, float]
"""The smallest and the largest value that a score can have."""
Scores = Sequence[Mapping[str, Sequence[float]]]
"""Groups, each of which maps a unit to the scores of its cases."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    `ci95` is None with fewer than two units that have a score, and where all units agree in a value
    that has no known range.
    """

    value: float
    ci95: tuple[float, float] | None
    units: int


@dataclass(frozen=True, slots=True)
class _Jackknife:
    """A statistic, and what it is without each of the units that have a score."""

    value: float
    without_L: Floats
    effective: float
    has_L: NDArray[np.bool_]

    @property
    def units(self) -> int:
        return int(self.has_L.sum())

    @property
    def pseudo_L(self) -> Floats:
        """The pseudo-values (Tukey, 1958): what every unit says about the statistic."""
        return self.units * self.value - (self.units - 1) * self.without_L

    def estimate(self, within: Range | None) -> Estimate:
        if self.units < 2:
            return Estimate(_round(self.value), None, self.units)
        pseudo = self.pseudo_L[self.has_L]
        error = math.sqrt(float(pseudo.var(ddof=1)) / self.units)
        freedom = max(int(self.effective) - 1, 1)
        interval = student(self.value, error, freedom, within)
        if interval is None:
            interval = agreed(self.value, self.effective, within)
        return Estimate(_round(self.value), interval, self.units)


class Intervals:
    """Means over units. `mean`, `over_runs`, `ratio` and `auc` have intervals of Student's t."""

    def __init__(self, units: Sequence[str], over: str = "lanes") -> None:
        """over: what the units are, see `RunFolder.over`."""
        self.over = over
        self._row = {unit: i for i, unit in enumerate(units)}

    @cached_property
    def _weights_RL(self) -> Floats:
        """How often every unit is in each resample; the same for every score of a run."""
        n = max(len(self._row), 1)
        rng = np.random.default_rng(SEED)
        return rng.multinomial(n, [1 / n] * n, size=RESAMPLES).astype(np.float64)

    def mean(
        self, groups: Scores, mix: Sequence[float], within: Range | None = None
    ) -> Estimate | None:
        """The mean over groups (weights `mix`) of each group's mean; a group maps unit -> scores.

        within: the range of a score. None when there is nothing to average. Without the only unit
        that has a score of a group, the mean is that over the other groups.
        """
        found = self._mean(groups, mix)
        return found.estimate(within) if found else None

    def over_runs(
        self, runs: Sequence[Scores], mix: Sequence[float], within: Range | None = None
    ) -> Estimate | None:
        """The mean over several runs of the same units, such as one per training seed.

        The interval holds for other units and other runs: units and runs are crossed, so the
        variance is that of both less that of their interaction (Cameron, Gelbach and Miller, 2011),
        never less than the larger one, with the degrees of freedom of Satterthwaite (1946).
        """
        found = [one for groups in runs if (one := self._mean(groups, mix)) is not None]
        if len(found) < 2:
            return found[0].estimate(within) if found else None
        value_S = np.array([one.value for one in found])
        value = float(value_S.mean())
        has_L = np.logical_or.reduce([one.has_L for one in found])
        units, count = int(has_L.sum()), len(found)
        if units < 2:
            return Estimate(_round(value), None, units)
        pseudo_SL = np.stack([one.pseudo_L[has_L] for one in found])
        pseudo_SL += value_S[:, None] - pseudo_SL.mean(1, keepdims=True)
        unit_L = pseudo_SL.mean(0)
        rest_SL = pseudo_SL - value_S[:, None] - unit_L[None] + value
        of_units = float(unit_L.var(ddof=1)) / units
        of_runs = float(value_S.var(ddof=1)) / count
        of_both = float((rest_SL**2).sum()) / ((count - 1) * (units - 1) * count * units)
        variance = max(of_units, of_runs, of_units + of_runs - of_both)
        effective = min(one.effective for one in found)
        parts = of_runs**2 / (count - 1) + of_units**2 / max(effective - 1, 1)
        freedom = max(int(variance**2 / parts), 1) if parts else units - 1
        interval = student(value, math.sqrt(variance), freedom, within)
        if interval is None:
            interval = agreed(value, effective, within)
        return Estimate(_round(value), interval, units)

    def _mean(self, groups: Scores, mix: Sequence[float]) -> _Jackknife | None:
        sums_LG = np.zeros((max(len(self._row), 1), len(groups)))
        counts_LG = np.zeros_like(sums_LG)
        for g, group in enumerate(groups):
            for unit, scores in group.items():
                sums_LG[self._row[unit], g] = sum(scores)
                counts_LG[self._row[unit], g] = len(scores)
        if not counts_LG.any():
            return None
        mix_G = np.asarray(mix, dtype=np.float64)
        sums_G, counts_G = sums_LG.sum(0), counts_LG.sum(0)
        value = _mixed(sums_G[None], counts_G[None], mix_G)[0]
        without_L = _mixed(sums_G - sums_LG, counts_G - counts_LG, mix_G)
        shares_LG = np.divide(counts_LG, counts_G, out=np.zeros_like(counts_LG), where=counts_G > 0)
        return _left_out(value, without_L, counts_LG.sum(1) > 0, shares_LG @ mix_G)

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
        right, size_2 = order_LL.sum(), size_L2.sum(0)
        right_L = right - order_LL.sum(0) - order_LL.sum(1) + order_LL.diagonal()
        pairs_L = (size_2 - size_L2).prod(1)
        without_L = np.divide(right_L, pairs_L, out=np.full(units, np.nan), where=pairs_L > 0)
        fewer = min(size_L2.T, key=_effective)
        found = _left_out(right / size_2.prod(), without_L, size_L2.sum(1) > 0, fewer)
        return found.estimate((0.0, 1.0))

    def ratio(
        self, parts: Mapping[str, tuple[float, float]], within: Range | None = None
    ) -> Estimate | None:
        """sum a / sum b over units, from unit -> (a, b); a weighted mean has a = sum w score.

        within: the range of a score. None where the weights sum to 0.
        """
        parts_L2 = np.zeros((max(len(self._row), 1), 2))
        for unit, part in parts.items():
            parts_L2[self._row[unit]] = part
        top, bottom = parts_L2.sum(0)
        if bottom <= 0:
            return None
        left_L2 = parts_L2.sum(0) - parts_L2
        without_L = np.divide(
            left_L2[:, 0], left_L2[:, 1], out=np.full(len(left_L2), np.nan), where=left_L2[:, 1] > 0
        )
        has_L = parts_L2[:, 1] > 0
        return _left_out(top / bottom, without_L, has_L, parts_L2[:, 1]).estimate(within)


def _left_out(
    value: float, without_L: Floats, has_L: NDArray[np.bool_], weights_L: Floats
) -> _Jackknife:
    """Without a unit that holds all there is, nothing is left: that unit then says nothing."""
    kept_L = np.where(has_L & ~np.isnan(without_L), without_L, value)
    return _Jackknife(float(value), kept_L, _effective(weights_L), has_L)


def student(
    value: float, error: float, freedom: int, within: Range | None
) -> tuple[float, float] | None:
    """The 95 % interval of an estimate from its standard error; None where that is 0.

    within: the range of the score, if it has one. There the interval is that of the logit of the
    score's place in its range, as for proportions of a survey (Korn and Graubard, 1999).
    """
    if not _round(error):
        return None
    reach = quantile(freedom) * error
    if within is None:
        return _round(value - reach), _round(value + reach)
    low, high = within
    place = (value - low) / (high - low)
    if not 0 < place < 1:
        return None
    logit = math.log(place / (1 - place))
    reach /= (high - low) * place * (1 - place)
    ends = (low + (high - low) / (1 + math.exp(-x)) for x in (logit - reach, logit + reach))
    first, last = map(_round, ends)
    return first, last


@cache
def quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, found by halving (there is no scipy in the core).

    The distribution function for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 4.
    """
    low, high = 0.0, 13.0  # t of one degree of freedom is 12.7
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < 1 - 2 * TAIL else (low, middle)
    return low


def _inside(t: float, freedom: int) -> float:
    """The share of Student's t that lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine2 * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


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
