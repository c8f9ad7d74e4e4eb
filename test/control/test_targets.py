"""Joint targets: measured position and motion so far, for the controllers that take positions."""

from __future__ import annotations

import numpy as np
import pytest

from flashvla_ros.control import targets
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.types import ActionKind, ActionSpec

NAMES = ("shoulder", "elbow", "wrist", "x", "gripper")
KINDS = (ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.GRIPPER)
SPEC = ActionSpec(NAMES, KINDS, 0.1)


@pytest.mark.parametrize(
    ("command_type", "joints"),
    [
        ("JointTrajectory", ["shoulder", "elbow"]),
        ("Float64MultiArray", ["shoulder"]),
        ("TwistStamped", []),
        ("PoseStamped", []),
    ],
)
def test_which_joints_are_counted_from_where_they_are(command_type: str, joints: list[str]) -> None:
    assert targets.started_from(command_type, SPEC) == joints
    targets.check(command_type, SPEC, dict.fromkeys(joints, 0.0))
    if joints:
        with pytest.raises(ActionError, match=rf"does not report \['{joints[-1]}'\] \(it reports .*'wrist'"):
            targets.check(command_type, SPEC, dict.fromkeys([*joints[:-1], "wrist"], 0.0))


def test_deltas_add_up_velocities_for_their_time_and_the_rest_stays() -> None:
    command = np.array([[0.1, 1.0, 0.5, 0.2, 1.0], [0.2, -3.0, 0.6, 0.2, -1.0]])
    given = command.copy()
    reached = targets.joint_positions(command, SPEC, ["shoulder", "elbow"], {"shoulder": 1.0, "elbow": 2.0})
    np.testing.assert_allclose(reached, [[1.1, 2.1, 0.5, 0.2, 1.0], [1.3, 1.8, 0.6, 0.2, -1.0]])
    np.testing.assert_array_equal(command, given)
