"""Intervals and paired tests against figures worked out by hand."""

import pytest

from flashvla_ros.evaluation.statistics import Paired, Rate


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
