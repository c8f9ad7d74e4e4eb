"""Intervals and paired tests against figures worked out by hand."""

import pytest

from flashvla_ros.evaluation.statistics import Paired, Rate, holm, most_events, upper_bound


def test_wilson_interval_of_48_of_50():
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = 0.96, n = 50, z = 1.96
    assert Rate(48, 50).interval == pytest.approx((0.8654, 0.9890), abs=1e-4)


def test_interval_stays_inside_0_and_1_at_the_ends():
    assert Rate(50, 50).interval[1] == pytest.approx(1.0) and Rate(50, 50).interval[0] < 0.95
    assert Rate(0, 50).interval[0] == pytest.approx(0.0, abs=1e-12)


def test_mcnemar_counts_only_discordant_pairs():
    reference = [True] * 90 + [True] * 6 + [False] * 4
    other = [True] * 90 + [False] * 6 + [False] * 4
    assert Paired.of(reference, other) == Paired(lost=6, won=0)
    assert Paired.of(reference, other).mcnemar_p == pytest.approx(2 * 0.5**6)


def test_mcnemar_of_equal_outcomes_is_no_evidence():
    assert Paired.of([True, False], [True, False]).mcnemar_p == 1.0


def test_mcnemar_refuses_unpaired_outcomes():
    with pytest.raises(ValueError, match="zip"):
        Paired.of([True], [True, False])


def test_tangos_interval_agrees_with_published_ones() -> None:
    """Airway reactivity before and after a transplantation: Fagerland, Lydersen & Laake 2014, table III."""
    value, low, high = Paired(lost=7, won=1).difference(21)
    assert (round(value, 3), round(low, 3), round(high, 3)) == (-0.286, -0.517, -0.026)


@pytest.mark.parametrize(("lost", "won", "trials"), [(0, 0, 50), (5, 0, 5), (0, 5, 5), (3, 0, 102), (4, 9, 40)])
def test_tangos_interval_is_symmetric_and_holds_the_difference(lost: int, won: int, trials: int) -> None:
    value, low, high = Paired(lost, won).difference(trials)
    assert -1.0 <= low <= value <= high <= 1.0
    assert low < high
    mirrored = Paired(won, lost).difference(trials)
    assert mirrored == pytest.approx((-value, -high, -low), abs=1e-9)


def test_the_interval_excludes_zero_where_the_score_test_rejects() -> None:
    """At a difference of 0 the score is McNemar's, (b - c) / √(b + c)."""
    for lost in range(12):
        _, low, high = Paired(lost, 2).difference(60)
        assert (low > 0.0 or high < 0.0) is (abs(lost - 2) / max(lost + 2, 1) ** 0.5 > 1.959964)


def test_holm_adjusts_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_exact_bound_says_how_many_failures_a_risk_allows() -> None:
    """0 of 59, 1 of 93, 2 of 124 and 4 of 181 are the fewest starts that certify 5 % at 95 %."""
    assert [most_events(n, 0.05, 0.95) for n in (58, 59, 92, 93, 124, 181)] == [-1, 0, 0, 1, 2, 4]
    assert upper_bound(3, 102, 0.95) == pytest.approx(0.0743, abs=1e-4)
    assert upper_bound(5, 5, 0.95) == 1.0
