"""Bring-up in phases: a scale that ramps, at 0 moves nothing, and never adds motion; a dry run that leaves no trace."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashvla_ros.control.limits import limit
from flashvla_ros.control.motion import oriented, ramped, scaled
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import ControlSettings, LimitsSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec

DELTA, VELOCITY, ABSOLUTE, GRIPPER = ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE, ActionKind.GRIPPER
MIXED = ActionSpec(("x", "speed", "elbow", "gripper"), (DELTA, VELOCITY, ABSOLUTE, GRIPPER), 0.1)
EULER = ActionSpec(("x", "y", "z", "rx", "ry", "rz"), (ABSOLUTE,) * 6, 0.1)
QUATERNION = ActionSpec(("x", "y", "z", "qx", "qy", "qz", "qw"), (ABSOLUTE,) * 7, 0.1)
JOINT = ActionSpec(("elbow",), (ABSOLUTE,), 0.1)
EULER_NAMES = {"action.names": EULER.names, "action.kinds": ("absolute",) * 6}
UNLIMITED = LimitsSettings()
finite = st.floats(-1e3, 1e3)


def control(**values: Any) -> Settings:
    return Settings().with_values({"gate.mode": "off"} | {f"control.{name}": value for name, value in values.items()})


def steps(
    stepper: Stepper, values: Settings, count: int, start_s: float = 1.0, every_s: float = 0.1
) -> list[StepResult]:
    return [stepper.step(make_observation(start_s + every_s * number), values) for number in range(count)]


def joints(stamp_s: float, **positions: float) -> Any:
    return dataclasses.replace(make_observation(stamp_s), joint_positions=positions)


# The scale.


def test_half_the_speed_is_half_of_every_motion_and_half_the_way_and_leaves_the_gripper() -> None:
    action = np.array([[0.4, 2.0, 1.0, 1.0], [0.4, 2.0, 1.0, -1.0]])
    slow = scaled(action, np.array([0.0, 0.0, 0.5, 0.0]), 0.5, UNLIMITED, MIXED)
    np.testing.assert_allclose(slow, [[0.2, 1.0, 0.75, 1.0], [0.2, 1.0, 0.875, -1.0]])
    assert scaled(action, np.full(4, np.nan), 1.0, UNLIMITED, MIXED) is action


def test_angles_beyond_all_numbers_are_no_programming_error() -> None:
    policy = ScriptedPolicy([np.outer((1.0, -1.0), [0.0, 0.0, 0.0, 1.7e308, 0.0, 0.0])], scale=1.0)
    at = dataclasses.replace(make_observation(1.0), pose=dict.fromkeys(EULER.names, 0.0))
    values = Settings().with_values(EULER_NAMES | {"limits.max_step": [0.1] * 3 + [1e9] * 3, "gate.mode": "off"})
    assert np.isfinite(Stepper(policy, EULER).step(at, values).command).all()  # nothing bounds them


def test_an_absolute_dimension_that_nobody_has_measured_is_not_moved_slowly() -> None:
    with pytest.raises(ActionError, match=r"where \['elbow'\] are is unknown.*publish joint_states"):
        scaled(np.zeros((1, 4)), np.full(4, np.nan), 0.5, UNLIMITED, MIXED)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.5), (0.5, 1.25), (1.0, 1.0)])
def test_a_robot_outside_its_limits_is_brought_back_into_them_at_the_same_scale(scale: float, expected: float) -> None:
    limits = LimitsSettings(lower=(-1.0,) * 4, upper=(1.0,) * 4)
    start = np.array([0.0, 0.0, 1.5, 0.0])
    slow = scaled(np.array([[0.0, 0.0, 1.4, 0.0]]), start, scale, limits, MIXED)
    assert slow[0, 2] == expected
    command, _ = limit(slow, start, limits, MIXED)
    assert command[0, 2] == expected


def test_a_slow_turn_goes_the_short_way() -> None:
    before = np.array([0.0, 0.0, 0.0, 3.0, 0.0, 0.0])
    slow = scaled(np.array([[0.0, 0.0, 0.0, -3.0, 0.0, 0.0]]), before, 0.5, UNLIMITED, EULER)
    assert slow[0, 3] == pytest.approx(math.pi)


def test_a_quaternion_is_normalised_and_of_the_nearer_sign() -> None:
    before = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    turned = oriented(np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0]] * 2), before, QUATERNION)
    np.testing.assert_array_equal(turned[:, 3:], [[0.0, 0.0, 0.0, 1.0]] * 2)
    with pytest.raises(ActionError, match="which is no rotation"):
        oriented(np.zeros((1, 7)), before, QUATERNION)


@pytest.mark.parametrize(
    "before",
    [(0.0, 0.0, 0.6, -0.8), (1.0, 0.0, 0.0, 0.0), (math.nan,) * 4],
    ids=["near", "a half turn away", "unknown"],
)
def test_a_quaternion_that_is_no_further_than_its_negative_is_left_alone(before: tuple[float, ...]) -> None:
    action = np.array([[0.1, 0.2, 0.3, 0.0, 0.0, 0.6, -0.8]])
    given = action.copy()
    turned = oriented(action, np.array([0.0, 0.0, 0.0, *before]), QUATERNION)
    np.testing.assert_array_equal(turned, given)
    np.testing.assert_array_equal(action, given)


def test_each_quaternion_follows_the_row_before_it_and_not_the_reference() -> None:
    eighths = [math.pi / 4 * eighth for eighth in range(1, 9)]  # half angles: the last is a full turn, w = -1
    turn = np.array([[0.0] * 3 + [math.sin(angle), 0.0, 0.0, math.cos(angle)] for angle in eighths])
    mixed = turn.copy()
    mixed[::2, 3:] *= -1.0
    np.testing.assert_allclose(oriented(mixed, np.array([0.0] * 6 + [1.0]), QUATERNION), turn)


@given(
    st.sampled_from([MIXED, EULER, JOINT]),
    st.floats(0.0, 1.0),
    st.data(),
)
@settings(deadline=None)
def test_a_slower_robot_never_moves_further_and_a_stopped_one_not_at_all(
    spec: ActionSpec, scale: float, data: st.DataObject
) -> None:
    action = data.draw(hnp.arrays(np.float64, (data.draw(st.integers(1, 4)), spec.size), elements=finite))
    before = data.draw(hnp.arrays(np.float64, spec.size, elements=finite))
    slow = scaled(action, before, scale, UNLIMITED, spec)
    full = scaled(action, before, 1.0, UNLIMITED, spec)
    still = scaled(action, before, 0.0, UNLIMITED, spec)
    for index, kind in enumerate(spec.kinds):
        if kind is GRIPPER:
            np.testing.assert_array_equal(slow[:, index], action[:, index])
        elif kind is ABSOLUTE:
            np.testing.assert_array_equal(still[:, index], before[index])
            assert abs(slow[0, index] - before[index]) <= abs(full[0, index] - before[index]) + 1e-6
        else:
            np.testing.assert_array_equal(still[:, index], 0.0)
            assert (np.abs(slow[:, index]) <= np.abs(full[:, index])).all()


# The ramp.


def test_the_scale_ramps_after_a_start_and_after_a_stop_and_no_further_than_it_should() -> None:
    stepper = Stepper(ScriptedPolicy(), SPEC)
    values = control(ramp_s=0.4, speed_scale=0.6)
    scales = [result.speed_scale for result in steps(stepper, values, 5)]
    assert scales == pytest.approx([0.0, 0.25, 0.5, 0.6, 0.6])
    stepper.reset(Reason.IMAGE_TIMEOUT)
    after = steps(stepper, values, 3, start_s=2.0)
    assert [result.speed_scale for result in after] == pytest.approx([0.0, 0.25, 0.5])
    assert [result.command[0, 0] for result in after] == pytest.approx([0.0, 0.25 * 0.005, 0.5 * 0.005])
    assert after[0].command[0, 3] == 0.01  # the gripper
    assert not after[0].clamped.any()  # slowing down is no clamping


def test_a_higher_scale_is_reached_on_the_ramp_and_a_lower_one_at_once() -> None:
    stepper = Stepper(ScriptedPolicy(), SPEC)
    steps(stepper, control(speed_scale=0.2), 2)
    up = steps(stepper, control(speed_scale=1.0, ramp_s=1.0), 3, start_s=1.2)
    assert [result.speed_scale for result in up] == pytest.approx([0.3, 0.4, 0.5])
    assert steps(stepper, control(speed_scale=0.1, ramp_s=1.0), 1, start_s=1.5)[0].speed_scale == 0.1
    assert steps(stepper, control(speed_scale=0.7), 1, start_s=1.6)[0].speed_scale == 0.7


def test_a_step_limit_does_not_keep_a_slower_robot_moving() -> None:
    stepper = Stepper(ScriptedPolicy(), SPEC)
    steady = {"limits.max_step": [0.0001] * 4}
    moving = steps(stepper, control().with_values(steady), 60)[-1].command[0, 0]
    assert moving == pytest.approx(0.005)
    half = steps(stepper, control(speed_scale=0.5).with_values(steady), 1, start_s=7.0)[0].command[0, 0]
    assert half == pytest.approx(0.5 * moving)
    assert steps(stepper, control(speed_scale=0.0).with_values(steady), 1, start_s=7.1)[0].command[0, 0] == 0.0


@pytest.mark.parametrize("jump_s", [-1e6, -1.0, 1e6])
def test_a_clock_that_jumps_does_not_end_the_ramp(jump_s: float) -> None:
    values = ControlSettings(ramp_s=10.0, image_timeout_s=0.5)
    assert ramped(0.1, False, jump_s, values) <= 0.15 + 1e-12


@given(st.lists(st.tuples(st.floats(-1.0, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 3.0), st.booleans()), max_size=30))
@settings(deadline=None)
def test_the_scale_never_exceeds_what_is_asked_for_nor_rises_faster_than_the_ramp(changes: list[Any]) -> None:
    scale = 0.0
    for elapsed_s, wanted, ramp_s, resting in changes:
        values = ControlSettings(speed_scale=wanted, ramp_s=ramp_s)
        before, scale = scale, ramped(scale, resting, elapsed_s, values)
        assert 0.0 <= scale <= wanted
        if ramp_s > 0.0:
            assert scale <= (0.0 if resting else before) + max(elapsed_s, 0.0) / ramp_s + 1e-12


def test_an_absolute_joint_creeps_from_where_it_was_measured() -> None:
    stepper = Stepper(ScriptedPolicy(actions=[[1.0]], scale=1.0), JOINT)
    values = control(speed_scale=0.5)
    commands = [float(stepper.step(joints(1.0 + 0.1 * n, elbow=0.2), values).command[0, 0]) for n in range(3)]
    assert commands == pytest.approx([0.6, 0.8, 0.9])


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_at_scale_0_no_sequence_moves_the_robot(data: st.DataObject) -> None:
    actions = data.draw(st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=4), min_size=1, max_size=6))
    stepper = Stepper(ScriptedPolicy(actions, scale=1.0), MIXED)
    limits = {"limits.lower": [-0.5, -0.5, -2.0, -1.0], "limits.upper": [0.5] * 2 + [2.0, 1.0]}
    values = control(speed_scale=0.0, ramp_s=data.draw(st.sampled_from([0.0, 1.0]))).with_values(
        limits | {"limits.max_step": [0.1] * 4, "gate.mode": data.draw(st.sampled_from(["off", "guarded"]))}
    )
    for number in range(8):
        if data.draw(st.booleans()):
            stepper.reset(Reason.RESET)
        command = stepper.step(joints(1.0 + 0.1 * number, elbow=0.3), values).command
        assert command[0, :3].tolist() == [0.0, 0.0, 0.3]


# The dry run.


def test_after_a_dry_run_the_robot_is_at_rest_where_it_was_measured() -> None:
    values = control(ramp_s=1.0).with_values(
        {"action.names": ["elbow"], "action.kinds": ["absolute"], "limits.max_step": [0.1]}
    )
    stepper = Stepper(ScriptedPolicy(actions=[[1.0]], scale=1.0), JOINT)
    dry = values.with_values({"control.dry_run": True, "control.ramp_s": 0.0})
    walked = [float(stepper.step(joints(1.0 + 0.1 * n, elbow=0.0), dry).command[0, 0]) for n in range(5)]
    assert walked == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])  # what would have been sent
    first = stepper.step(joints(1.5, elbow=0.0), values)
    assert (first.command[0, 0], first.speed_scale) == (0.0, 0.0)


def test_after_a_dry_run_without_joint_states_nothing_is_taken_for_followed() -> None:
    stepper = Stepper(ScriptedPolicy(actions=[[1.0]], scale=1.0), JOINT)
    steps(stepper, control(dry_run=True), 2)
    with pytest.raises(ActionError, match="is unknown"):
        stepper.step(make_observation(1.3), control(speed_scale=0.5))
    assert stepper.state.dry_run  # as if it had not been tried
