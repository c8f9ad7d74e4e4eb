"""Where the robot was last measured."""

from __future__ import annotations

from flashvla_ros.control.robot_state import RobotState


def test_positions_are_the_last_ones_measured():
    state = RobotState()
    assert state.positions(0.0, 1.0) == {}
    state.update(0.0, {"elbow": 0.1, "wrist": 0.2})
    state.update(0.5, {"elbow": 0.3})  # another driver's message does not take the wrist back
    assert state.positions(0.5, 1.0) == {"elbow": 0.3, "wrist": 0.2}


def test_what_is_older_than_allowed_is_left_out_and_comes_back_when_measured_again():
    state = RobotState()
    state.update(2.0, {"elbow": 0.1})
    state.update(3.0, {"wrist": 0.2})
    assert state.positions(3.0, 1.0) == {"elbow": 0.1, "wrist": 0.2}
    assert state.positions(3.5, 1.0) == {"wrist": 0.2}
    state.update(3.5, {"elbow": 0.4})
    assert state.positions(4.5, 1.0) == {"elbow": 0.4}
