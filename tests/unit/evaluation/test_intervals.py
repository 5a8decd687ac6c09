"""The intervals against closed forms, and how often they hold the true value."""

from __future__ import annotations

import numpy as np
import pytest

from errata.evaluation.statistics.intervals import Floats, Intervals, agreed, quantile, student


def test_interval_of_a_proportion() -> None:
    # 70 of 100 right: the normal interval is 0.7 -+ 1.96 sqrt(0.21 / 100) = [0.610, 0.790]
    units = [f"u{i}" for i in range(100)]
    e = Intervals(units).mean([{u: [float(i < 70)] for i, u in enumerate(units)}], [1.0])
    assert e is not None and e.value == 0.7 and e.ci95 is not None and e.units == 100
    assert e.ci95 == pytest.approx((0.61, 0.79), abs=0.015)


@pytest.mark.parametrize(("n", "low"), [(2, 0.158114), (10, 0.691503), (240, 0.984747)])
def test_where_all_agree_the_interval_is_exact(n: int, low: float) -> None:
    # Clopper-Pearson for n of n: its lower end x has x^n = 0.025
    units = [f"u{i}" for i in range(n)]
    intervals = Intervals(units)
    for value, expected in ((1.0, (low, 1.0)), (0.0, (0.0, 1 - low)), (0.5, None)):
        e = intervals.mean([{u: [value] for u in units}] * 2, [0.5, 0.5], within=(0.0, 1.0))
        assert e is not None and e.value == value and e.units == n
        wanted = expected or (0.5 - (1 - low) / 2, 0.5 + (1 - low) / 2)
        assert e.ci95 == pytest.approx(wanted, abs=1e-6)


def test_no_difference_in_ten_pairs_is_not_certain() -> None:
    units = [f"u{i}" for i in range(10)]
    e = Intervals(units).mean([{u: [0.0] for u in units}], [1.0], within=(-1.0, 1.0))
    assert e is not None and e.ci95 == pytest.approx((-0.308497, 0.308497))


def test_agreement_of_units_of_unequal_weight_counts_as_fewer_units() -> None:
    # weights 9 and 1: (9 + 1)^2 / (81 + 1) = 1.22 units
    e = Intervals(["a", "b"]).mean([{"a": [1.0] * 9, "b": [1.0]}], [1.0], within=(0.0, 1.0))
    assert e is not None and e.ci95 == agreed(1.0, 100 / 82, (0.0, 1.0))
    ratio = Intervals(["a", "b"]).ratio({"a": (9.0, 9.0), "b": (1.0, 1.0)}, within=(0.0, 1.0))
    assert ratio == e


def test_agreement_without_a_range_has_no_interval() -> None:
    e = Intervals(["a", "b"]).mean([{"a": [3.0], "b": [3.0]}], [1.0])
    assert e is not None and e.value == 3.0 and e.ci95 is None


def test_cases_of_one_unit_are_not_independent() -> None:
    # ten units of ten equal cases are as wide as ten cases, not as a hundred
    units = [f"u{i}" for i in range(10)]
    one = {u: [float(i % 2)] for i, u in enumerate(units)}
    ten = {u: [float(i % 2)] * 10 for i, u in enumerate(units)}
    intervals = Intervals(units)
    assert intervals.mean([one], [1.0]) == intervals.mean([ten], [1.0])


def test_units_of_unequal_size_and_groups() -> None:
    # g1: (1 + 0 + 0) / 3, g2: 1 -> 1 * 1/3 * 3/4 + 1 * 1/4 = 1/2
    e = Intervals(["a", "b"]).mean([{"a": [1.0], "b": [0.0, 0.0]}, {"b": [1.0]}], [0.75, 0.25])
    assert e is not None and e.value == 0.5
    # without a: 0.75 * 0 + 0.25 * 1 = 0.25; without b, g1 only: 1. So the jackknife's error is
    # sqrt(1/2 (0.375^2 + 0.375^2)) = 0.375, and t of one degree of freedom is 12.7062
    assert e.ci95 == pytest.approx((0.5 - 12.7062 * 0.375, 0.5 + 12.7062 * 0.375), abs=1e-4)


def test_nothing() -> None:
    assert Intervals([]).mean([{}], [1.0]) is None
    assert Intervals(["a"]).mean([], []) is None


def test_a_ratio_of_sums_is_a_weighted_mean() -> None:
    intervals = Intervals(["a", "b"])
    found = intervals.ratio({"a": (3.0, 4.0), "b": (0.0, 2.0)})
    assert found is not None and (found.value, found.units) == (0.5, 2)
    # b alone is 0, a alone is 0.75: the same error as above
    assert found.ci95 == pytest.approx((0.5 - 12.7062 * 0.375, 0.5 + 12.7062 * 0.375), abs=1e-4)


def test_a_ratio_agrees_with_the_mean_where_all_weights_are_one() -> None:
    units = {f"u{i}": [float(i % 3 == 0)] * (1 + i % 2) for i in range(20)}
    intervals = Intervals(sorted(units))
    ratio = intervals.ratio({u: (sum(s), float(len(s))) for u, s in units.items()})
    assert ratio is not None and ratio == intervals.mean([units], [1.0])


def test_a_ratio_without_weight_is_none() -> None:
    intervals = Intervals(["a", "b"])
    assert intervals.ratio({"a": (0.0, 0.0)}) is None
    one = intervals.ratio({"a": (1.0, 2.0)})
    assert one is not None and one.ci95 is None, "one unit has no interval"


def test_auc_by_counting_pairs():
    above = {"a": [0.9, 0.5], "b": [0.4]}
    below = {"a": [0.5], "b": [0.1, 0.45]}
    found = Intervals(["a", "b"]).auc(above, below)
    # 0.9 beats three, 0.5 beats two and ties with one, 0.4 beats one: 6.5 of 9
    assert found.value == round(6.5 / 9, 6) and found.units == 2
    # b alone: (0 + 1) / 2, a alone: (1 + .5) / 2; on the logit scale, from value and error
    place, error = 6.5 / 9, 0.125
    reach, logit = 12.7062 * error / (place * (1 - place)), np.log(place / (1 - place))
    wanted = [1 / (1 + np.exp(-x)) for x in (logit - reach, logit + reach)]
    assert found.ci95 == pytest.approx(wanted, abs=1e-4)


def test_auc_of_what_is_parted_and_of_nothing():
    intervals = Intervals([str(i) for i in range(20)])
    apart = intervals.auc(
        {str(i): [1.0 + i] for i in range(20)}, {str(i): [0.5] for i in range(20)}
    )
    least = 0.025 ** (1 / 20)
    assert apart.value == 1.0 and apart.ci95 == pytest.approx((least, 1.0), abs=1e-6), "20 of 20"
    assert intervals.auc({}, {"0": [1.0]}) is None
    assert intervals.auc({"0": [1.0]}, {"0": [0.0]}).ci95 is None, "one unit has no interval"
    rng = np.random.default_rng(0)
    same = {str(i): rng.normal(size=30).tolist() for i in range(20)}
    other = {str(i): rng.normal(size=30).tolist() for i in range(20)}
    low, high = intervals.auc(same, other).ci95
    assert low < 0.5 < high


def test_peak_and_how_sure_it_is():
    intervals = Intervals(["a", "b"])
    assert intervals.peak({"a": [0.0, 1.0, 0.0], "b": [0.0, 2.0, 1.0]}) == (1, 1.0)
    best, agree = intervals.peak({"a": [3.0, 0.0], "b": [0.0, 1.0]})
    # 3 to 1 with both, and with twice a; only twice b, a quarter of resamples, has it elsewhere
    assert best == 0 and abs(agree - 0.75) < 0.03


# ----------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (9, 2.262157), (30, 2.042272), (400, 1.965912)],
)
def test_the_quantiles_are_those_of_the_tables(freedom: int, t: float) -> None:
    assert quantile(freedom) == pytest.approx(t, abs=1e-5)


def test_an_interval_of_a_share_stays_in_its_range_and_is_longer_towards_the_middle() -> None:
    low, high = student(0.99, 0.01, 9, (0.0, 1.0)) or (0.0, 0.0)
    assert 0.8 < low < 0.98 and 0.99 < high < 1.0 and 0.99 - low > high - 0.99
    assert student(0.5, 0.1, 9, None) == pytest.approx((0.273784, 0.726216), abs=1e-6)


def _units(units: int, shares_U: Floats) -> dict[str, list[float]]:
    return {f"u{i}": [float(shares_U[i])] for i in range(units)}


def _percentile(shares_U: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """What errata printed before: the percentile bootstrap."""
    n = len(shares_U)
    means = rng.multinomial(n, [1 / n] * n, size=400) @ shares_U / n
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize(
    ("units", "cases", "share", "spread"),
    [(10, 10, 0.9, 8), (10, 10, 0.97, 8), (20, 10, 0.9, 8), (240, 1, 0.99, 0)],
    ids=["10 sequences", "10, nearly all right", "20 sequences", "240 cases, 99 %"],
)
def test_it_covers_where_the_percentile_bootstrap_does_not(
    units: int, cases: int, share: float, spread: float
) -> None:
    """Sequences whose own shares differ (beta distribution), of binary scores."""
    rng = np.random.default_rng(0)
    intervals = Intervals([f"u{i}" for i in range(units)])
    ours = before = 0
    for _ in range(400):
        own_U = rng.beta(share * spread, (1 - share) * spread, units) if spread else share
        shares_U = rng.binomial(cases, own_U, size=units) / cases
        found = intervals.mean([_units(units, shares_U)], [1.0], within=(0.0, 1.0))
        assert found is not None and found.ci95 is not None
        ours += found.ci95[0] <= share <= found.ci95[1]
        low, high = _percentile(shares_U, rng)
        before += low <= share <= high
    assert ours / 400 >= 0.93, "3 standard errors below 95 % are 91.7 %"
    assert before / 400 < 0.915, "this test would pass with the percentile bootstrap"


# -------------------------------------------------------------------------------------------- seeds


def _runs(value_SU: Floats) -> list[list[dict[str, list[float]]]]:
    return [[_units(value_SU.shape[1], row)] for row in value_SU]


def test_an_interval_over_training_seeds_holds_for_another_seed() -> None:
    rng = np.random.default_rng(0)
    intervals = Intervals([f"u{i}" for i in range(60)])
    all_seeds = one_seed = 0
    for _ in range(400):
        of_units, of_seeds = rng.normal(0, 0.25, 60), rng.normal(0, 0.05, 3)
        value_SU = of_units[None] + of_seeds[:, None] + rng.normal(0, 0.2, (3, 60))
        found = intervals.over_runs(_runs(value_SU), [1.0])
        alone = intervals.mean([_units(60, value_SU[0])], [1.0])
        assert found and alone and found.ci95 and alone.ci95
        all_seeds += found.ci95[0] <= 0 <= found.ci95[1]
        one_seed += alone.ci95[0] <= 0 <= alone.ci95[1]
    assert all_seeds / 400 >= 0.917, "three standard errors below 95 %"
    assert one_seed / 400 < 0.9, "the interval of one seed knows nothing of the others"


def test_runs_that_agree_add_nothing_and_one_run_is_itself() -> None:
    intervals = Intervals([f"u{i}" for i in range(40)])
    row = np.random.default_rng(1).normal(0.5, 0.1, 40)
    one = intervals.mean([_units(40, row)], [1.0])
    assert one == intervals.over_runs(_runs(row[None]), [1.0])
    same = intervals.over_runs(_runs(np.stack([row, row, row])), [1.0])
    assert one and same and same.value == one.value and same.ci95 == pytest.approx(one.ci95)
    assert intervals.over_runs([], [1.0]) is None


def test_all_right_in_every_run_is_the_exact_bound() -> None:
    intervals = Intervals([f"u{i}" for i in range(10)])
    found = intervals.over_runs(_runs(np.ones((3, 10))), [1.0], within=(0.0, 1.0))
    assert found is not None and found.ci95 == agreed(1.0, 10, (0.0, 1.0))
