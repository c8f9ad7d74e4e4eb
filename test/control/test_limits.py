"""Limits: no command outside its range or step, none that leads out of the robot's space, none that is not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashvla_ros.control.limits import bounds_of, limit
from flashvla_ros.core.errors import ActionError, SettingsError
from flashvla_ros.core.settings import LimitsSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec

DELTA, VELOCITY, ABSOLUTE, GRIPPER = ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE, ActionKind.GRIPPER
TWIST = ActionSpec(("x", "y", "z", "gripper"), (DELTA, VELOCITY, DELTA, GRIPPER), 0.1)
EULER = ActionSpec(("x", "y", "z", "rx", "ry", "rz"), (ABSOLUTE,) * 6, 0.1)
QUATERNION = ActionSpec(("x", "y", "z", "qx", "qy", "qz", "qw"), (ABSOLUTE,) * 7, 0.1)
ARM = ActionSpec(("shoulder", "elbow", "wrist", "gripper"), (ABSOLUTE, DELTA, VELOCITY, GRIPPER), 0.1)
BOX = LimitsSettings(workspace_lower=(-0.5, -0.5, 0.0), workspace_upper=(0.5, 0.5, 0.4))
ANYWHERE = np.full(6, np.nan)
finite = st.floats(-1e3, 1e3)
small = st.floats(-2.0, 2.0)


def test_a_box_bounds_absolute_positions() -> None:
    command, clamped = limit(np.array([[2.0, -2.0, -0.1, 0.1, 0.2, 0.3]]), ANYWHERE, BOX, EULER)
    np.testing.assert_array_equal(command, [[0.5, -0.5, 0.0, 0.1, 0.2, 0.3]])
    assert clamped.tolist() == [[True, True, True, False, False, False]]


def test_a_box_shortens_deltas_and_velocities_from_where_the_robot_is_row_by_row() -> None:
    action = np.array([[0.3, 1.0, 0.0, 1.0], [0.3, 1.0, -0.1, 1.0]])
    command, clamped = limit(action, np.zeros(4), BOX, TWIST, positions={"x": 0.0, "y": 0.35, "z": 0.05})
    np.testing.assert_allclose(command, [[0.3, 1.0, 0.0, 1.0], [0.2, 0.5, -0.05, 1.0]], atol=1e-12)
    assert clamped.tolist() == [[False, False, False, False], [True, True, True, False]]


def test_outside_its_box_the_robot_may_only_come_back() -> None:
    command, _ = limit(
        np.array([[0.1, 0.0, -0.1, 0.0], [-0.2, 0.0, 0.3, 0.0], [0.5, 0.0, 0.0, 0.0]]),
        np.zeros(4),
        BOX,
        TWIST,
        positions={"x": 0.6, "y": 0.0, "z": -0.2},
    )
    np.testing.assert_allclose(command[:, 0], [0.0, -0.2, 0.1], atol=1e-12)
    np.testing.assert_allclose(command[:, 2], [0.0, 0.3, 0.0], atol=1e-12)


def test_a_box_without_a_pose_refuses_to_move() -> None:
    with pytest.raises(ActionError, match=r"limits.workspace_\* bound x, but .* publish its pose .* end_effector_pose"):
        limit(np.zeros((1, 4)), np.zeros(4), BOX, TWIST, positions={"elbow": 1.0})


def test_joint_ranges_hold_for_every_kind() -> None:
    limits = LimitsSettings(joint_lower=(-1.0, -1.0, -1.0, -1e9), joint_upper=(1.0, 1.0, 1.0, 1e9))
    positions = {"elbow": 0.9, "wrist": -0.95}
    command, _ = limit(np.array([[3.0, 0.5, -5.0, 5.0]]), np.full(4, np.nan), limits, ARM, positions=positions)
    np.testing.assert_allclose(command, [[1.0, 0.1, -0.5, 5.0]], atol=1e-12)
    with pytest.raises(ActionError, match=r"'elbow', but joint_states does not report it .*'wrist'.*cannot be kept"):
        limit(np.zeros((1, 4)), np.zeros(4), limits, ARM, positions={"wrist": 0.0})


def test_joint_speeds_hold_for_every_kind() -> None:
    limits = LimitsSettings(joint_velocity=(1.0, 1.0, 1.0, 0.0))
    action = np.array([[3.0, 0.5, -5.0, 5.0], [3.0, 0.5, -5.0, 5.0]])
    command, _ = limit(action, np.zeros(4), limits, ARM)
    np.testing.assert_allclose(command, [[0.1, 0.1, -1.0, 5.0], [0.2, 0.1, -1.0, 5.0]])
    command, _ = limit(action, np.zeros(4), limits, ARM, elapsed_s=0.03)  # a camera faster than the action's spacing
    np.testing.assert_allclose(command[:, 0], [0.03, 0.13])


@pytest.mark.parametrize("place", [1.2, 0.52, 0.501, -0.3, -1e6])
def test_a_joint_measured_outside_its_range_comes_back_no_faster_than_step_and_speed(place: float) -> None:
    spec = ActionSpec(("j1", "gripper"), (ABSOLUTE, GRIPPER), 0.1)
    limits = LimitsSettings(
        joint_lower=(0.0, -1e9), joint_upper=(0.5, 1e9), joint_velocity=(0.5, 1e9), max_step=(0.01, 2.0)
    )
    for asked in (0.25, 0.9, -5.0, place):
        command, _ = limit(np.array([[asked, 0.0]] * 3), np.array([place, 0.0]), limits, spec, positions={"j1": place})
        steps = np.diff([place, *command[:, 0]])
        assert np.abs(steps).max() <= 0.01 + 1e-9
        outside = np.maximum(0.0, np.maximum(command[:, 0] - 0.5, -command[:, 0]))
        assert (np.diff([max(place - 0.5, -place), *outside]) <= 1e-9).all()
    command, _ = limit(np.array([[0.25, 0.0]]), np.array([place, 0.0]), limits, spec, positions={"j1": place})
    assert command[0, 0] == pytest.approx(place - math.copysign(0.01, place - 0.25))


def test_an_angle_outside_its_range_comes_back_through_it_and_not_round_the_other_way() -> None:
    limits = LimitsSettings(
        lower=(-9.0,) * 3 + (-1.0,) * 3, upper=(9.0,) * 3 + (1.0,) * 3, max_step=(1.0,) * 3 + (0.1,) * 3
    )
    before = np.array([0.0, 0.0, 0.0, 3.0, -3.0, 0.0])
    command, _ = limit(np.array([[0.0, 0.0, 0.0, -1.0, 1.0, 0.0]]), before, limits, EULER)
    np.testing.assert_allclose(command[0, 3:], [2.9, -2.9, 0.0])


def test_an_angle_takes_the_short_way_round() -> None:
    limits = LimitsSettings(max_step=(1.0, 1.0, 1.0, 0.1, 0.1, 0.1))
    before = np.array([0.0, 0.0, 0.0, 3.1, 0.0, -3.1])
    command, clamped = limit(np.array([[0.0, 0.0, 0.0, -3.1, 0.0, 3.0]]), before, limits, EULER)
    assert command[0, 3] == -3.1  # 0.08 rad away, not 6.2
    assert command[0, 5] == pytest.approx(-3.2)
    assert clamped.tolist() == [[False, False, False, False, False, True]]


def test_an_angle_that_crosses_the_seam_stays_inside_a_range_of_a_whole_turn() -> None:
    span = (math.pi, math.pi, math.pi)
    limits = LimitsSettings(
        lower=(-1.0, -1.0, -1.0, *(-value for value in span)),
        upper=(1.0, 1.0, 1.0, *span),
        max_step=(1.0, 1.0, 1.0, 0.1, 0.1, 0.1),
    )
    before = np.array([0.0, 0.0, 0.0, 3.1, 0.0, 0.0])
    command, _ = limit(np.array([[0.0, 0.0, 0.0, -2.9, 0.0, 0.0]] * 3), before, limits, EULER)
    np.testing.assert_allclose(command[:, 3], [3.2 - 2 * math.pi, 3.3 - 2 * math.pi, -2.9], atol=1e-12)


def test_a_joint_called_rx_is_no_angle() -> None:
    spec = ActionSpec(("rx",), (ABSOLUTE,), 0.1)
    command, _ = limit(np.array([[0.0]]), np.array([2 * math.pi]), LimitsSettings(max_step=(1.0,)), spec)
    assert command[0, 0] == pytest.approx(2 * math.pi - 1.0)


def test_limits_that_leave_no_rotation_refuse_to_move() -> None:
    limits = LimitsSettings(lower=(-1.0,) * 3 + (0.0,) * 4, upper=(1.0,) * 3 + (0.0,) * 4)
    with pytest.raises(ActionError, match="leave no rotation"):
        limit(np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]), np.full(7, np.nan), limits, QUATERNION)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limits.workspace_lower": [0.0, 0.0]}, "limits.workspace_lower must have 3 values, for x, y and z"),
        ({"limits.workspace_lower": [1, 0, 0], "limits.workspace_upper": [0, 0, 0]}, "exceeds .* for x: 1 > 0"),
        (
            {"limits.workspace_lower": [0, 0, 0], "action.names": ["a", "b", "c", "gripper"]},
            r"bounds dimensions named x, y and z, but action.names is \['a', 'b', 'c', 'gripper'\]",
        ),
        ({"limits.joint_upper": [1.0]}, "limits.joint_upper must have 4 values, one for each of .*'gripper'"),
        ({"limits.joint_velocity": [-1, 1, 1, 1]}, "limits.joint_velocity must be at least 0"),
        ({"limits.lower": [0.1, 0, 0, 0]}, "leave out 0 .*a delta of 0 is how the robot stands still"),
        (
            {
                "action.kinds": ["absolute"] * 3 + ["gripper"],
                "limits.lower": [0.6, 0, 0, 0],
                "limits.workspace_upper": [0.5, 1, 1],
            },
            "leave nothing for x: at least 0.6 and at most 0.5",
        ),
        ({"control.max_deviation": [0.1, 0, 0, 0]}, "control.max_deviation of x must be 0: only an absolute"),
        ({"control.max_deviation": [0.1]}, "control.max_deviation must have 4 values"),
        ({"limits.urdf": "a.urdf", "limits.robot_description": True}, "both name a URDF"),
    ],
)
def test_contradictions_are_refused_with_their_names(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings().with_values(values)


@st.composite
def confined(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, LimitsSettings, dict[str, float]]:
    low = draw(hnp.arrays(np.float64, 3, elements=small))
    size = draw(hnp.arrays(np.float64, 3, elements=st.floats(0.0, 2.0)))
    limits = LimitsSettings(
        lower=draw(st.sampled_from([(), (-0.5, -0.5, -0.5, -1.0)])),
        upper=draw(st.sampled_from([(), (0.5, 0.5, 0.5, 1.0)])),
        joint_velocity=draw(st.sampled_from([(), (1.0, 2.0, 3.0, 0.0)])),
        workspace_lower=tuple(low),
        workspace_upper=tuple(low + size),
    )
    action = draw(hnp.arrays(np.float64, (draw(st.integers(1, 5)), 4), elements=finite))
    positions = dict(zip("xyz", draw(hnp.arrays(np.float64, 3, elements=small)).tolist(), strict=True))
    return action, draw(hnp.arrays(np.float64, 4, elements=finite)), limits, positions


@given(confined())
@settings(deadline=None)
def test_no_motion_leads_further_out_of_the_box(
    case: tuple[np.ndarray, np.ndarray, LimitsSettings, dict[str, float]],
) -> None:
    action, reference, limits, positions = case
    command, clamped = limit(action, reference, limits, TWIST, positions=positions)
    assert np.isfinite(command).all()
    bounds = bounds_of(limits, TWIST)
    assert (command >= bounds.lower).all()
    assert (command <= bounds.upper).all()
    np.testing.assert_array_equal(clamped, command != action)
    spans = np.array([1.0, TWIST.dt_s, 1.0])
    place = np.array([positions[name] for name in "xyz"])
    low, high = np.array(limits.workspace_lower), np.array(limits.workspace_upper)
    for row in command[:, :3]:
        reached = place + row * spans
        assert (reached >= np.minimum(low, place) - 1e-9).all()
        assert (reached <= np.maximum(high, place) + 1e-9).all()
        place = reached


@given(
    hnp.arrays(np.float64, (3, 6), elements=small),
    hnp.arrays(np.float64, 6, elements=small),
    st.sampled_from([0.01, 0.5, math.pi]),
)
@settings(deadline=None)
def test_no_pose_turns_further_than_its_step(action: np.ndarray, before: np.ndarray, step: float) -> None:
    limits = LimitsSettings(
        lower=(-1.0,) * 3 + (-math.pi,) * 3, upper=(1.0,) * 3 + (math.pi,) * 3, max_step=(9.0,) * 3 + (step,) * 3
    )
    action[:, 3:] *= math.pi / 2
    before[3:] *= math.pi / 2
    command, _ = limit(action, before, limits, EULER)
    rows = np.vstack([before, command])[:, 3:]
    turned = np.diff(rows, axis=0)
    turned -= 2 * math.pi * np.round(turned / (2 * math.pi))
    assert np.abs(turned).max() <= step + 1e-9
    assert np.abs(command[:, 3:]).max() <= math.pi
