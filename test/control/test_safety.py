"""Safety: only finite actions of the declared size pass, nothing leaves outside its limits, and a stop stops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashvla_ros.control import safety
from flashvla_ros.control.limits import limit
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.settings import LimitsSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, Inference

SPEC = ActionSpec(
    ("dx", "speed", "joint", "gripper"),
    (ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE, ActionKind.GRIPPER),
    0.1,
)
UNLIMITED = LimitsSettings()
finite = st.floats(-1e6, 1e6)


def inference(action: np.ndarray, normalized: np.ndarray | None = None) -> Inference:
    return Inference(action, action if normalized is None else normalized, np.empty(0, np.int64), None, 64)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 3), (1, 5), (1, 1, 4), ()])
def test_an_action_of_another_size_is_refused_with_both_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ActionError, match=r"shape \[.*\].*declares 4 dimensions .*'dx'"):
        safety.check(inference(np.zeros(shape), np.zeros((1, 4))), SPEC)
    with pytest.raises(ActionError, match="normalised"):
        safety.check(inference(np.zeros((1, 4)), np.zeros(shape)), SPEC)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_with_its_dimensions(bad: float) -> None:
    action = np.zeros((3, 4))
    action[2, 1] = action[0, 3] = bad
    with pytest.raises(ActionError, match=r"not finite in \['speed', 'gripper'\]"):
        safety.check(inference(action), SPEC)
    with pytest.raises(ActionError, match="not finite"):
        safety.check(inference(np.zeros((3, 4)), action), SPEC)


def test_a_policy_of_another_size_is_refused() -> None:
    safety.check_size(4, SPEC)
    with pytest.raises(ActionError, match=r"7 dimensions but .* declares 4"):
        safety.check_size(7, SPEC)


def test_without_limits_an_action_is_left_alone() -> None:
    action = np.array([[1e9, -1e9, 0.0, 3.0]])
    command, clamped = limit(action, np.zeros(4), UNLIMITED, SPEC)
    np.testing.assert_array_equal(command, action)
    assert not clamped.any()
    assert command is not action


def test_range_and_step_are_clamped_row_by_row() -> None:
    limits = LimitsSettings(lower=(-1.0,) * 4, upper=(1.0,) * 4, max_step=(0.4,) * 4)
    action = np.array([[5.0, 0.1, -5.0, 0.0]] * 3)
    command, clamped = limit(action, np.zeros(4), limits, SPEC)
    np.testing.assert_allclose(command, [[0.4, 0.1, -0.4, 0.0], [0.8, 0.1, -0.8, 0.0], [1.0, 0.1, -1.0, 0.0]])
    assert clamped.tolist() == [[True, False, True, False]] * 3


def test_an_unknown_reference_allows_any_first_step_inside_the_range() -> None:
    limits = LimitsSettings(lower=(-1.0,) * 4, upper=(1.0,) * 4, max_step=(0.1,) * 4)
    reference = np.array([0.0, np.nan, np.nan, 0.0])
    command, _ = limit(np.array([[5.0, 5.0, 0.7, 0.0], [5.0, 0.0, 0.7, 0.0]]), reference, limits, SPEC)
    np.testing.assert_allclose(command, [[0.1, 1.0, 0.7, 0.0], [0.2, 0.9, 0.7, 0.0]])


@st.composite
def limited(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, LimitsSettings]:
    rows = draw(st.integers(1, 5))
    bounds = np.sort(draw(hnp.arrays(np.float64, (2, 4), elements=finite)), axis=0)
    limits = LimitsSettings(
        lower=draw(st.sampled_from([(), tuple(bounds[0])])),
        upper=draw(st.sampled_from([(), tuple(bounds[1])])),
        max_step=draw(st.sampled_from([(), tuple(draw(hnp.arrays(np.float64, 4, elements=st.floats(0, 1e6))))])),
    )
    action = draw(hnp.arrays(np.float64, (rows, 4), elements=finite))
    reference = draw(hnp.arrays(np.float64, 4, elements=st.one_of(finite, st.just(np.nan))))
    return action, reference, limits


@given(limited())
@settings(deadline=None)
def test_limits_are_never_exceeded(case: tuple[np.ndarray, np.ndarray, LimitsSettings]) -> None:
    action, reference, limits = case
    kept = action.copy()
    command, clamped = limit(action, reference, limits, SPEC)
    np.testing.assert_array_equal(action, kept)
    assert np.isfinite(command).all()
    lower = np.array(limits.lower or [-np.inf] * 4)
    upper = np.array(limits.upper or [np.inf] * 4)
    absolute = np.array([kind is ActionKind.ABSOLUTE for kind in SPEC.kinds])
    start = np.where(absolute, reference, np.clip(reference, lower, upper))
    before = np.vstack([start, command[:-1]])
    # An absolute dimension that starts outside its range is on its way back, and never goes further out.
    assert (command >= np.fmin(lower, before)).all()
    assert (command <= np.fmax(upper, before)).all()
    if limits.max_step:
        excess = np.abs(command - before) - np.array(limits.max_step)
        assert np.nanmax(excess, initial=-np.inf) <= 1e-6
    np.testing.assert_array_equal(clamped, command != action)
    again, _ = limit(command, reference, limits, SPEC)
    np.testing.assert_allclose(again, command, atol=1e-6)


# Stopping.

HELD = np.array([0.01, 0.5, 1.2, 1.0])


def test_zero_moves_nothing_and_never_slams_an_absolute_dimension_to_its_origin() -> None:
    command = safety.stop_command("zero", SPEC, HELD, {"joint": 1.1})
    assert command is not None
    np.testing.assert_array_equal(command, [[0.0, 0.0, 1.1, 1.0]])
    unmeasured = safety.stop_command("zero", SPEC, HELD, {"another": 0.0})
    assert unmeasured is not None
    np.testing.assert_array_equal(unmeasured, [[0.0, 0.0, 1.2, 1.0]])


def test_hold_keeps_the_last_target_and_repeats_no_motion() -> None:
    command = safety.stop_command("hold", SPEC, HELD, {"joint": 1.1})
    assert command is not None
    np.testing.assert_array_equal(command, [[0.0, 0.0, 1.2, 1.0]])
    np.testing.assert_array_equal(HELD, [0.01, 0.5, 1.2, 1.0])


def test_none_is_silence_and_a_robot_never_commanded_is_left_alone() -> None:
    assert safety.stop_command("none", SPEC, HELD, {}) is None
    for action in ("zero", "hold"):
        assert safety.stop_command(action, SPEC, None, {"joint": 1.0}) is None


@given(
    st.sampled_from(["zero", "hold"]),
    st.lists(st.sampled_from(list(ActionKind)), min_size=1, max_size=8),
    st.data(),
)
@settings(deadline=None)
def test_no_stop_moves_the_robot(stop_action: str, kinds: list[ActionKind], data: st.DataObject) -> None:
    spec = ActionSpec(tuple(f"d{i}" for i in range(len(kinds))), tuple(kinds), 0.1)
    held = data.draw(hnp.arrays(np.float64, len(kinds), elements=finite))
    positions = data.draw(st.dictionaries(st.sampled_from(spec.names), finite))
    command = safety.stop_command(stop_action, spec, held, positions)
    assert command is not None
    for name, kind, was, now in zip(spec.names, kinds, held, command[0], strict=True):
        if kind in (ActionKind.DELTA, ActionKind.VELOCITY):
            assert now == 0.0
        elif kind is ActionKind.GRIPPER:
            assert now == was
        else:
            assert now in (was, positions.get(name, was))
