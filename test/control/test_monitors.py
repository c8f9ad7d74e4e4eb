"""What the monitors see in commands, and what a conformal threshold promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashvla_ros.control.monitors import SignMonitor, Signs, conformal_threshold
from flashvla_ros.core.settings import MonitorSettings
from flashvla_ros.core.types import ActionKind, ActionSpec

DELTAS = ActionSpec(("x", "y", "z", "gripper"), (ActionKind.DELTA,) * 3 + (ActionKind.GRIPPER,), 0.1)
JOINTS = ActionSpec(("a", "b"), (ActionKind.ABSOLUTE,) * 2, 0.1)


def watch(rows, spec=DELTAS, confidence=math.nan, window_s=2.0) -> Signs:
    monitor = SignMonitor(spec)
    for number, row in enumerate(rows):
        padded = np.zeros((1, spec.size))
        padded[0, : len(row)] = row
        monitor.add(0.1 * number, padded, confidence, window_s)
    return monitor.signs


def test_a_straight_path_shows_nothing_and_one_to_and_fro_everything():
    straight = watch([(0.01, 0.0)] * 10)
    assert (straight.reversals, straight.oscillation, straight.still_s) == (0.0, pytest.approx(0.0), 0.0)
    shaking = watch([(0.01 * (-1) ** number, 0.0) for number in range(10)])
    assert (shaking.reversals, shaking.oscillation) == (1.0, 1.0)


def test_a_circle_is_an_oscillation_without_a_reversal():
    circle = watch([(math.cos(angle), math.sin(angle)) for angle in np.linspace(0.0, 2 * math.pi, 20, endpoint=False)])
    assert circle.reversals == 0.0
    assert circle.oscillation == pytest.approx(1.0)


def test_absolute_targets_are_watched_by_their_change():
    assert watch([(0.1 * number, 0.0) for number in range(10)], JOINTS).oscillation == pytest.approx(0.0)
    assert watch([(0.1 * (number % 2), 0.0) for number in range(10)], JOINTS).reversals == 1.0
    assert watch([(0.1 * min(number, 3), 0.0) for number in range(10)], JOINTS).still_s == pytest.approx(0.6)


def test_a_clock_that_jumps_back_leaves_nothing_of_the_time_before():
    monitor, command = SignMonitor(DELTAS), np.array([[0.01, 0.0, 0.0, 0.0]])
    for number in range(10):
        monitor.add(1000.0 + 0.1 * number, command * (-1) ** number, 0.1, 2.0)
    assert monitor.signs.reversals == 1.0
    for number in range(5):
        signs = monitor.add(10.0 + 0.1 * number, command, 0.9, 2.0)
    assert (signs.reversals, signs.still_s, signs.confidence) == (0.0, 0.0, 0.9)


def test_standing_and_small_noise_say_nothing_of_direction():
    signs = watch([(0.01, 0.0)] * 2 + [(1e-5 * (-1) ** number, 0.0) for number in range(20)], window_s=1.0)
    assert math.isnan(signs.reversals)
    assert signs.still_s == pytest.approx(2.0)


def test_thresholds_that_are_exceeded_are_named():
    signs = Signs(reversals=0.6, oscillation=0.9, still_s=4.0, confidence=0.1)
    assert signs.beyond(MonitorSettings()) == ""
    words = signs.beyond(MonitorSettings(max_reversals=0.5, max_still_s=3.0, min_confidence=0.2))
    assert words == (
        "reversals 0.6 (monitor.max_reversals is 0.5), still_s 4 (monitor.max_still_s is 3), "
        "confidence 0.1 (monitor.min_confidence is 0.2)"
    )
    assert Signs().beyond(MonitorSettings(max_reversals=0.0, max_still_s=0.1, min_confidence=1.0)) == ""


def test_a_conformal_threshold_keeps_its_promise_on_any_distribution():
    rng = np.random.default_rng(0)
    alarms = [rng.lognormal() > conformal_threshold(rng.lognormal(size=39).tolist(), 0.1) for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.015)
    assert conformal_threshold([1.0] * 8, 0.1) == math.inf
    assert conformal_threshold([float(number) for number in range(9)], 0.1) == 8.0


@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), max_size=30))
def test_whatever_is_commanded_the_signs_stay_in_their_range(rows):
    signs = watch(rows)
    for value in (signs.reversals, signs.oscillation):
        assert math.isnan(value) or -1e-9 <= value <= 1.0
