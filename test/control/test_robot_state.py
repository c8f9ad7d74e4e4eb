"""Where the robot was last measured."""

from __future__ import annotations

import math

import pytest

from flashvla_ros.control.robot_state import RobotState


def test_positions_are_the_last_ones_measured():
    state = RobotState()
    assert state.positions(0.0, 1.0) == {}
    state.update(0.0, {"elbow": 0.1, "wrist": 0.2})
    state.update(0.5, {"elbow": 0.3})  # another driver's message does not take the wrist back
    assert state.positions(0.5, 1.0) == {"elbow": 0.3, "wrist": 0.2}


@pytest.mark.parametrize("at", [math.nan, math.inf])
def test_what_is_not_finite_was_not_measured(at):
    state = RobotState()
    state.update(0.0, {"elbow": 0.1, "wrist": at})
    state.update(0.5, {"elbow": at})
    assert state.positions(0.5, 1.0) == {"elbow": 0.1}
    assert state.positions(1.5, 1.0) == {}


def test_what_is_older_than_allowed_is_left_out_and_comes_back_when_measured_again():
    state = RobotState()
    state.update(2.0, {"elbow": 0.1})
    state.update(3.0, {"wrist": 0.2})
    assert state.positions(3.0, 1.0) == {"elbow": 0.1, "wrist": 0.2}
    assert state.positions(3.5, 1.0) == {"wrist": 0.2}
    state.update(3.5, {"elbow": 0.4})
    assert state.positions(4.5, 1.0) == {"elbow": 0.4}


@pytest.mark.parametrize("pattern", [(0.4, 0.0), (0.4, 0.4, 0.4, 0.0)])
def test_a_joint_that_two_nodes_report_in_two_places_is_disputed_until_one_of_them_stops(pattern):
    """As a joint_state_publisher does that sends zeros beside a driver, mostly at a lower rate."""
    state = RobotState()
    for index in range(40):
        now_s = 0.02 * index
        state.update(now_s, {"elbow": pattern[index % len(pattern)], "wrist": 0.1})
    assert state.disputed(now_s) == ["elbow"]
    assert state.positions(now_s, 1.0) == {"wrist": 0.1}
    for index in range(40, 100):
        state.update(0.02 * index, {"elbow": 0.4})
    assert state.disputed(2.0) == []


@pytest.mark.parametrize(("amplitude", "hz"), [(0.5, 1.0), (0.02, 25.0)], ids=["swing", "tremble"])
def test_a_joint_that_swings_or_trembles_is_not_disputed(amplitude, hz):
    state = RobotState()
    for index in range(100):
        at = amplitude * math.sin(math.tau * hz * 0.02 * index + 0.5)
        state.update(0.02 * index, {"elbow": at, "wrist": math.remainder(math.pi + at, math.tau)})
        assert state.disputed(0.02 * index) == []


def test_a_joint_that_is_moved_away_and_back_once_is_not_disputed():
    state = RobotState()
    for now_s, at in enumerate((0.0, 1.0, 0.0, 1.0)):
        state.update(0.01 * now_s, {"elbow": float(at)})
    assert state.disputed(0.04) == []


def test_a_rotation_that_is_written_in_two_ways_in_turn_is_not_disputed():
    """A hand that points straight down has qw near 0: drivers that keep qw positive turn every sign at each tremble."""
    state = RobotState()
    for index in range(40):
        sign = (-1.0) ** index
        pose = {"x": 0.5, "rx": sign * 0.8, "rz": -sign * 0.8, "qx": sign, "qw": 1e-4}  # Euler angles near a pole
        state.update(0.02 * index, pose)
    assert state.positions(0.8, 1.0) == pose
    assert state.disputed(0.8) == []


def test_places_beyond_all_numbers_are_taken_in():
    state = RobotState()
    for index in range(10):
        state.update(0.1 * index, {"elbow": 1.7e308 * (-1) ** index})
    assert state.positions(1.0, 1.0) == {"elbow": -1.7e308}
