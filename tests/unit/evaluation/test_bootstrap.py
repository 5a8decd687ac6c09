"""The bootstrap against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from errata.evaluation.bootstrap import Bootstrap, agreed


def test_interval_of_a_proportion() -> None:
    # 70 of 100 right: the normal interval is 0.7 -+ 1.96 sqrt(0.21 / 100) = [0.610, 0.790]
    units = [f"u{i}" for i in range(100)]
    e = Bootstrap(units).mean([{u: [float(i < 70)] for i, u in enumerate(units)}], [1.0])
    assert e is not None and e.value == 0.7 and e.ci95 is not None and e.units == 100
    assert e.ci95 == pytest.approx((0.61, 0.79), abs=0.015)


@pytest.mark.parametrize(("n", "low"), [(2, 0.158114), (10, 0.691503), (240, 0.984747)])
def test_where_all_agree_the_interval_is_exact(n: int, low: float) -> None:
    # Clopper-Pearson for n of n: its lower end x has x^n = 0.025
    units = [f"u{i}" for i in range(n)]
    boot = Bootstrap(units)
    for value, expected in ((1.0, (low, 1.0)), (0.0, (0.0, 1 - low)), (0.5, None)):
        e = boot.mean([{u: [value] for u in units}] * 2, [0.5, 0.5], within=(0.0, 1.0))
        assert e is not None and e.value == value and e.units == n
        wanted = expected or (0.5 - (1 - low) / 2, 0.5 + (1 - low) / 2)
        assert e.ci95 == pytest.approx(wanted, abs=1e-6)


def test_no_difference_in_ten_pairs_is_not_certain() -> None:
    units = [f"u{i}" for i in range(10)]
    e = Bootstrap(units).mean([{u: [0.0] for u in units}], [1.0], within=(-1.0, 1.0))
    assert e is not None and e.ci95 == pytest.approx((-0.308497, 0.308497))


def test_agreement_of_units_of_unequal_weight_counts_as_fewer_units() -> None:
    # weights 9 and 1: (9 + 1)^2 / (81 + 1) = 1.22 units
    e = Bootstrap(["a", "b"]).mean([{"a": [1.0] * 9, "b": [1.0]}], [1.0], within=(0.0, 1.0))
    assert e is not None and e.ci95 == agreed(1.0, 100 / 82, (0.0, 1.0))
    ratio = Bootstrap(["a", "b"]).ratio({"a": (9.0, 9.0), "b": (1.0, 1.0)}, within=(0.0, 1.0))
    assert ratio == e


def test_agreement_without_a_range_has_no_interval() -> None:
    e = Bootstrap(["a", "b"]).mean([{"a": [3.0], "b": [3.0]}], [1.0])
    assert e is not None and e.value == 3.0 and e.ci95 is None


def test_cases_of_one_unit_are_not_independent() -> None:
    # ten units of ten equal cases are as wide as ten cases, not as a hundred
    units = [f"u{i}" for i in range(10)]
    one = {u: [float(i % 2)] for i, u in enumerate(units)}
    ten = {u: [float(i % 2)] * 10 for i, u in enumerate(units)}
    boot = Bootstrap(units)
    assert boot.mean([one], [1.0]) == boot.mean([ten], [1.0])


def test_units_of_unequal_size_and_groups() -> None:
    # g1: (1 + 0 + 0) / 3, g2: 1 -> 1 * 1/3 * 3/4 + 1 * 1/4 = 1/2
    e = Bootstrap(["a", "b"]).mean([{"a": [1.0], "b": [0.0, 0.0]}, {"b": [1.0]}], [0.75, 0.25])
    assert e is not None and e.value == 0.5
    # (a, a) has g1 only: 1; (b, b): 0.75 * 0 + 0.25 * 1 = 0.25
    assert e.ci95 == (0.25, 1.0)


def test_nothing() -> None:
    assert Bootstrap([]).mean([{}], [1.0]) is None
    assert Bootstrap(["a"]).mean([], []) is None


def test_a_ratio_of_sums_is_a_weighted_mean() -> None:
    boot = Bootstrap(["a", "b"])
    found = boot.ratio({"a": (3.0, 4.0), "b": (0.0, 2.0)})
    assert found is not None and (found.value, found.units) == (0.5, 2)
    assert found.ci95 == (0.0, 0.75), "b alone and a alone are each a quarter of the resamples"


def test_a_ratio_agrees_with_the_mean_where_all_weights_are_one() -> None:
    units = {f"u{i}": [float(i % 3 == 0)] * (1 + i % 2) for i in range(20)}
    boot = Bootstrap(sorted(units))
    ratio = boot.ratio({u: (sum(s), float(len(s))) for u, s in units.items()})
    assert ratio is not None and ratio == boot.mean([units], [1.0])


def test_a_ratio_without_weight_is_none() -> None:
    boot = Bootstrap(["a", "b"])
    assert boot.ratio({"a": (0.0, 0.0)}) is None
    one = boot.ratio({"a": (1.0, 2.0)})
    assert one is not None and one.ci95 is None, "one unit has no interval"


def test_auc_by_counting_pairs():
    above = {"a": [0.9, 0.5], "b": [0.4]}
    below = {"a": [0.5], "b": [0.1, 0.45]}
    found = Bootstrap(["a", "b"]).auc(above, below)
    # 0.9 beats three, 0.5 beats two and ties with one, 0.4 beats one: 6.5 of 9
    assert found.value == round(6.5 / 9, 6) and found.units == 2
    # resamples: both units as they are; twice a: (1 + .5) / 2; twice b: (0 + 1) / 2
    assert found.ci95 == (0.5, 0.75)


def test_auc_of_what_is_parted_and_of_nothing():
    boot = Bootstrap([str(i) for i in range(20)])
    apart = boot.auc({str(i): [1.0 + i] for i in range(20)}, {str(i): [0.5] for i in range(20)})
    least = 0.025 ** (1 / 20)
    assert apart.value == 1.0 and apart.ci95 == pytest.approx((least, 1.0), abs=1e-6), "20 of 20"
    assert boot.auc({}, {"0": [1.0]}) is None
    assert boot.auc({"0": [1.0]}, {"0": [0.0]}).ci95 is None, "one unit has no interval"
    rng = np.random.default_rng(0)
    same = {str(i): rng.normal(size=30).tolist() for i in range(20)}
    other = {str(i): rng.normal(size=30).tolist() for i in range(20)}
    low, high = boot.auc(same, other).ci95
    assert low < 0.5 < high


def test_peak_and_how_sure_it_is():
    boot = Bootstrap(["a", "b"])
    assert boot.peak({"a": [0.0, 1.0, 0.0], "b": [0.0, 2.0, 1.0]}) == (1, 1.0)
    best, agree = boot.peak({"a": [3.0, 0.0], "b": [0.0, 1.0]})
    # 3 to 1 with both, and with twice a; only twice b, a quarter of resamples, has it elsewhere
    assert best == 0 and abs(agree - 0.75) < 0.03
