"""Commands as values and back, and when the rows of a trajectory are due."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import SPEC
from std_msgs.msg import Header

from flashvla_ros.core.errors import ActionError
from flashvla_ros.messages.commands import message_of, values_of

SIZES = {"TwistStamped": 6, "PoseStamped": 7, "Float64MultiArray": 4, "JointTrajectory": 4}


@pytest.mark.parametrize("command_type", SIZES)
def test_values_come_back(command_type: str) -> None:
    rows = 3 if command_type == "JointTrajectory" else 1
    values = np.random.default_rng(0).normal(size=(rows, SIZES[command_type]))
    message = message_of(command_type, values, SPEC, Header(frame_id="base"))
    np.testing.assert_array_equal(values_of(message, SPEC), values)


@pytest.mark.parametrize("rate_hz", [5, 30, 49, 1000])
def test_each_row_is_due_one_time_step_after_the_one_before_it(rate_hz: int) -> None:
    spec = dataclasses.replace(SPEC, dt_s=1.0 / rate_hz)
    message = message_of("JointTrajectory", np.zeros((2 * rate_hz, 4)), spec, Header())
    due_s = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in message.points]
    np.testing.assert_allclose(due_s, np.arange(1, 2 * rate_hz + 1) / rate_hz, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("factor", [0.01, 0.9, 1.1, 100.0])
def test_rows_that_come_faster_or_slower_than_their_values_say_are_no_command(factor: float) -> None:
    """Their steps are judged by the time step: at other times they are other speeds."""
    message = message_of("JointTrajectory", np.zeros((3, 4)), SPEC, Header())
    assert values_of(message, SPEC).shape == (3, 4)
    hurried = message_of(
        "JointTrajectory", np.zeros((3, 4)), dataclasses.replace(SPEC, dt_s=factor * SPEC.dt_s), Header()
    )
    with pytest.raises(ActionError, match=r"point 1 is due after .* s, but action.dt_s is 0.1"):
        values_of(hurried, SPEC)


@pytest.mark.parametrize("command_type", ["TwistStamped", "PoseStamped"])
def test_a_command_in_another_frame_is_none(command_type: str) -> None:
    """Its limits are those of command.frame_id, and a controller would turn it before it obeys."""
    for frame, passes in (("base", True), ("/base", True), ("", True), ("tool0", False)):
        message = message_of(command_type, np.zeros((1, SIZES[command_type])), SPEC, Header(frame_id=frame))
        if passes:
            assert values_of(message, SPEC, "base").shape == (1, SIZES[command_type])
            assert values_of(message, SPEC, "/base").shape == (1, SIZES[command_type])
        else:
            with pytest.raises(ActionError, match="its frame is 'tool0', but command.frame_id is 'base'"):
                values_of(message, SPEC, "base")
