"""What the guard lets pass, what it stops at, and what it makes of silence; and proof that its fuzzing can fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fuzz_guard import fuzz_guard
from hypothesis import given
from hypothesis import strategies as st

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.guard import rules
from flashvla_ros.guard.rules import Age, Guard, GuardState
from flashvla_ros.guard.settings import ROWS, GuardSettings

COMMANDS = 20_000
TWIST = {"limits.lower": [-0.1] * 3 + [0.0] * 3, "limits.upper": [0.1] * 3 + [0.0] * 3, "guard.max_age_s": 1.0}
JOINTS = {
    "command.type": "Float64MultiArray",
    "action.names": ("a", "b"),
    "action.kinds": ("absolute", "absolute"),
    "limits.max_step": (0.1, 0.1),
}
FRESH = Age(0.05, 0.001)


def twist(x: float = 0.05) -> np.ndarray:
    return np.array([[x, 0.0, 0.0, 0.0, 0.0, 0.0]])


def guard(**values: object) -> Guard:
    return Guard(GuardSettings.of({**TWIST, **{name.replace("__", "."): value for name, value in values.items()}}))


def moving() -> Guard:
    moved = guard()
    assert moved.command(twist(), FRESH, 10.0) == (True, None)
    return moved


@pytest.mark.parametrize(
    ("values", "age", "cause", "words"),
    [
        (twist(math.nan), FRESH, Reason.NOT_FINITE, "not finite in ['x']"),
        (twist(0.11), FRESH, Reason.LIMITS, "asks for 0.11 of x after 0.05; the guard's limits allow 0.1"),
        (twist(), Age(1.5, 0.0), Reason.STALE_COMMAND, "1.500 s ago (guard.max_age_s is 1)"),
        (twist(), Age(0.1, 0.3), Reason.STALE_COMMAND, "published 0.300 s ago (guard.max_transit_s is 0.2)"),
        (twist(), Age(-1.5, 0.0), Reason.STALE_COMMAND, "max_age_s"),
        (np.zeros((1, 5)), FRESH, Reason.LIMITS, "shape [1, 5], expected [T, 6]"),
        (np.zeros((0, 6)), FRESH, Reason.LIMITS, "shape [0, 6]"),
    ],
)
def test_a_command_that_does_not_pass_stops_the_robot_once(values, age, cause, words):
    moved = moving()
    passes, stop = moved.command(values, age, 10.1)
    assert not passes
    assert stop.cause is cause
    assert words in stop.detail
    assert stop.values.tolist() == [[0.0] * 6]
    assert moved.command(values, age, 10.2) == (False, None)
    # The cause ends, and with it the stop.
    assert moved.command(twist(), FRESH, 10.45) == (False, None)
    assert moved.command(twist(), FRESH, 10.51) == (True, None)


def test_silence_is_due_to_the_instant_and_only_while_the_robot_moves():
    moved = moving()
    assert moved.due_s == 10.5
    assert moved.tick(10.5) is None
    stop = moved.tick(10.501)
    assert stop.cause is Reason.SILENCE
    assert moved.tick(10.6) is None
    assert moved.tick(10.81) is None
    assert moved.state is GuardState.READY
    assert moved.command(twist(0.0), FRESH, 11.0)[0]
    assert moved.due_s == math.inf


def test_a_chunk_is_in_force_to_its_end():
    joints = Guard(GuardSettings.of({**JOINTS, "command.type": "JointTrajectory"}))
    chunk = np.array([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]])
    assert joints.command(chunk, Age(), 10.0, {"a": 0.0, "b": 0.0})[0]
    assert joints.due_s == pytest.approx(10.7)
    stop = joints.tick(10.8)
    assert stop.values.tolist() == [[0.2, 0.0]]


@pytest.mark.parametrize("writers", [2, 3])
def test_two_publishers_stop_the_robot_and_nothing_passes_while_they_are_two(writers):
    moved = moving()
    moved.writers = writers
    passes, stop = moved.command(twist(), FRESH, 10.1)
    assert (passes, stop.cause) == (False, Reason.PUBLISHER)
    assert not moved.command(twist(), FRESH, 11.0)[0]
    moved.writers = 1
    assert not moved.command(twist(), FRESH, 11.2)[0]
    assert moved.command(twist(), FRESH, 11.31)[0]


def test_another_publisher_takes_the_place_of_the_first_only_while_the_robot_stands():
    moved = guard()
    assert moved.command(twist(), FRESH, 10.0, publisher=b"first")[0]
    passes, stop = moved.command(twist(), FRESH, 10.1, publisher=b"second")
    assert (passes, stop.cause, stop.values.tolist()) == (False, Reason.PUBLISHER, [[0.0] * 6])
    assert not moved.command(twist(), FRESH, 10.2, publisher=b"first")[0]
    assert moved.command(twist(), FRESH, 10.5, publisher=b"second")[0]
    assert not moved.command(twist(), FRESH, 10.6, publisher=b"first")[0]


def test_a_step_is_held_to_how_the_dimensions_move_together():
    """The joints move in step: what each of them may do alone is too much where they part."""
    covariance = np.array([[0.01, 0.0099], [0.0099, 0.01]])
    matrix = np.linalg.cholesky(np.linalg.inv(covariance)).T.ravel()
    joints = Guard(GuardSettings.of({**JOINTS, "limits.max_step": (), "guard.step_matrix": tuple(matrix)}))
    at = {"a": 0.0, "b": 0.0}
    assert joints.command(np.array([[0.09, 0.09]]), Age(), 10.0, at)[0]
    passes, stop = joints.command(np.array([[0.09, 0.04]]), Age(), 10.1, at)
    assert not passes
    assert "a command's step is 3.544 times what guard.step_matrix allows" in stop.detail


def test_a_step_whose_length_overflows_is_too_long():
    joints = Guard(GuardSettings.of({**JOINTS, "limits.max_step": (), "guard.step_matrix": (1.0, 0.0, 0.0, 1.0)}))
    passes, stop = joints.command(np.array([[1.7e308, 0.0]]), Age(), 10.0, {"a": -1.7e308, "b": 0.0})
    assert not passes
    assert "what guard.step_matrix allows" in stop.detail


def test_a_publisher_that_does_not_live_stops_the_robot_and_its_first_words_are_not_heard():
    moved = moving()
    moved.alive = False
    assert moved.tick(10.1).cause is Reason.PUBLISHER
    moved.tick(12.0)
    moved.alive = True
    assert moved.command(twist(), Age(), 12.07) == (False, None)  # what it had computed before it was stopped
    assert moved.command(twist(), FRESH, 12.31)[0]


def test_an_emergency_stop_holds_until_reset_over_every_other_cause():
    moved = moving()
    moved.tick(10.6)
    stop = moved.stop(Reason.EMERGENCY_STOP, "pressed", 10.7)
    assert (stop.cause, stop.values) == (Reason.EMERGENCY_STOP, None)  # the robot is stopped already
    assert not moved.command(twist(), FRESH, 100.0)[0]
    assert moved.reset(100.0)
    assert not moved.reset(100.0)
    assert moved.command(twist(), FRESH, 100.1)[0]


def test_the_stop_of_a_joint_is_where_it_is_measured_or_its_target():
    for action, expected in (("zero", [[0.01, 0.05]]), ("hold", [[0.05, 0.05]]), ("none", None)):
        joints = Guard(GuardSettings.of({**JOINTS, "guard.stop_action": action}))
        assert joints.command(np.array([[0.05, 0.05]]), Age(), 10.0, {"a": 0.0, "b": 0.0})[0]
        stop = joints.tick(11.0, {"a": 0.01})
        assert (None if stop.values is None else stop.values.tolist()) == expected


def test_where_no_command_is_in_force_a_stop_moves_nothing():
    joints = Guard(GuardSettings.of({**JOINTS, "guard.stop_action": "hold"}))
    assert joints.command(np.array([[0.05, 0.05]]), Age(), 10.0, {"a": 0.0, "b": 0.0})[0]
    joints.tick(11.0)
    joints.tick(12.0)
    assert joints.state is GuardState.READY
    stop = joints.stop(Reason.EMERGENCY_STOP, "pressed", 20.0)  # by now the arm may have been moved by hand
    assert (stop.cause, stop.values) == (Reason.EMERGENCY_STOP, None)


def test_a_trajectory_is_stopped_at_the_row_that_the_policys_own_stop_holds():
    rows = np.array([[0.01, 0.01], [0.02, 0.02], [0.03, 0.03]])
    joints = Guard(GuardSettings.of({**JOINTS, "guard.stop_action": "hold", "action.dt_s": 0.1}))
    assert joints.command(rows, Age(), 10.0, {"a": 0.0, "b": 0.0})[0]
    stop = joints.stop(Reason.EMERGENCY_STOP, "pressed", 10.2)
    assert stop.values.tolist() == [[0.02, 0.02]]


def test_a_joint_that_nobody_has_measured_takes_no_first_step():
    joints = Guard(GuardSettings.of(JOINTS))
    passes, stop = joints.command(np.array([[0.05, 0.05]]), Age(), 10.0, {"a": 0.0})
    assert (passes, stop.values) == (False, None)
    assert "where ['b'] are is unknown" in stop.detail


def test_a_workspace_is_kept_with_the_measured_pose_alone():
    boxed = guard(limits__workspace_lower=[0.0, -1.0, 0.0], limits__workspace_upper=[0.5, 1.0, 1.0])
    assert boxed.command(twist(), FRESH, 10.0, {"x": 0.4, "y": 0.0, "z": 0.5})[0]
    assert "limits allow 0" in boxed.command(twist(), FRESH, 10.1, {"x": 0.5, "y": 0.0, "z": 0.5})[1].detail
    assert not boxed.command(twist(), FRESH, 11.0)[0]


@pytest.mark.parametrize(("length", "passes"), [(1.0, True), (-1.0, True), (0.5, False), (1e6, False), (0.0, False)])
def test_a_pose_needs_a_rotation(length, passes):
    pose = Guard(GuardSettings.of({"command.type": "PoseStamped"}))
    assert pose.command(np.array([[0.3, 0.0, 0.2, 0.0, 0.0, 0.0, length]]), FRESH, 10.0)[0] is passes


@pytest.mark.parametrize(("value", "cause"), [(0.5, None), (1.1, Reason.LIMITS), (math.inf, Reason.NOT_FINITE)])
def test_a_gripper_has_its_own_range(value, cause):
    gripping = guard(guard__gripper=[-1.0, 1.0])
    passes, stop = gripping.gripper(value, FRESH, 10.0)
    assert passes is (cause is None)
    assert (stop and stop.cause) == cause


def test_a_gripper_that_arrives_late_does_not_pass():
    gripping = guard()
    passes, stop = gripping.gripper(1.0, Age(transit_s=1.003), 10.0)
    assert not passes
    assert stop.cause is Reason.STALE_COMMAND


def test_a_stop_passes_whatever_a_step_may_be():
    slow = guard(limits__max_step=[0.06] * 6)
    assert slow.command(twist(0.05), FRESH, 10.0)[0]
    assert slow.command(twist(0.1), FRESH, 10.1)[0]
    assert not slow.command(twist(0.01), FRESH, 10.2)[0]
    fast = guard(limits__max_step=[0.06] * 6)
    assert fast.command(twist(0.06), FRESH, 10.0)[0]
    assert fast.command(twist(0.1), FRESH, 10.1)[0]
    assert fast.command(twist(0.0), FRESH, 10.2) == (True, None)


def test_a_gripper_out_of_range_stops_joints_where_they_are_measured():
    joints = Guard(GuardSettings.of({**JOINTS, "guard.gripper": [0.0, 1.0]}))
    assert joints.command(np.array([[0.05, 0.05]]), Age(), 10.0, {"a": 0.0, "b": 0.0})[0]
    assert joints.gripper(2.0, FRESH, 10.1, {"a": 0.01, "b": 0.02})[1].values.tolist() == [[0.01, 0.02]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"limits.lower": [-0.1] * 4}, "limits.lower must have 6 values"),
        ({"guard.gripper": [1.0, -1.0]}, "a least and a greatest value"),
        ({"guard.step_matrix": [1.0] * 6}, "guard.step_matrix must have 36 values"),
        ({"guard.timeout": 1.0}, "did you mean guard.timeout_s"),
        ({"limits.urdf": "arm.urdf"}, "no parameter 'limits.urdf'"),
        ({"guard.timeout_s": math.nan}, "must be finite"),
        ({"command.type": "JointTrajectory", "action.names": ["g"], "action.kinds": ["gripper"]}, "carries joints"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(values, words):
    with pytest.raises(SettingsError, match=words):
        GuardSettings.of(values)


def test_no_parameter_can_be_widened_while_it_runs():
    assert all(row.fixed for row in ROWS.values())


@given(st.lists(st.floats(), min_size=1, max_size=8), st.floats(0.001, 1e300), st.floats(), st.floats())
def test_whatever_passes_is_finite_inside_and_fresh(values, most, stamp_s, transit_s):
    limits = {"limits.lower": [-most] * 6, "limits.upper": [most] * 6, "guard.max_age_s": 1.0}
    bounded = Guard(GuardSettings.of(limits))
    passes, _ = bounded.command(np.array([values]), Age(stamp_s, transit_s), 10.0)
    good = len(values) == 6 and all(abs(value) <= most for value in values)
    if passes:
        assert len(values) == 6
        assert max(map(abs, values)) <= min(most, 1e9) * (1 + 1e-9) + 1e-9 or most >= 1e9
        assert abs(stamp_s) <= 1.0
        assert abs(transit_s) <= 0.2
    else:
        assert not (good and abs(stamp_s) <= 1.0 and abs(transit_s) <= 0.2)


@pytest.mark.timeout(600)
def test_no_fuzzed_command_passes_that_should_not():
    seen = fuzz_guard(COMMANDS, seed=10**6)
    print(seen)
    assert seen["commands"] >= COMMANDS
    assert min(seen["passed"], seen["refused"]) > COMMANDS // 10
    for cause in ("silence", "publisher", "stale_command", "not_finite", "limits", "emergency_stop"):
        assert seen[f"stop {cause}"] > 10


@pytest.mark.parametrize(
    ("name", "lazy", "words"),
    [
        ("_late", lambda *_: None, "passed though old"),
        ("_wrong", lambda *_: None, "passed"),
        ("_beyond", lambda *_: "", "passed"),
        ("_strange", lambda *_: None, "passed from another publisher"),
        ("_leap", lambda *_: "", "passed with too large a step"),
    ],
)
def test_a_guard_that_does_not_look_is_found(monkeypatch, name, lazy, words):
    monkeypatch.setattr(rules.Guard, name, lazy)
    with pytest.raises(AssertionError, match=f"seed .*{words}"):
        fuzz_guard(5000, seed=0)
