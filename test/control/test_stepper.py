"""The control step: what is reused, what is remembered, how chunks and limits go on, and what no sequence may break."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import ActionError, ObservationError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import EMPTYING, Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, Inference

DEFAULTS = Settings()


def with_values(**values: Any) -> Settings:
    """`gate__delta=0.5` sets gate.delta."""
    return DEFAULTS.with_values({name.replace("__", "."): value for name, value in values.items()})


def run(stepper: Stepper, steps: int, values: Settings = DEFAULTS, start_s: float = 1.0) -> list[StepResult]:
    return [stepper.step(make_observation(start_s + 0.1 * step), values) for step in range(steps)]


def test_a_steady_policy_is_reused_every_other_step_and_never_locks_up() -> None:
    policy = ScriptedPolicy()
    results = run(Stepper(policy, SPEC), 101, with_values(gate__max_reuse=1))
    assert [str(result.decision.reason) for result in results[:6]] == [
        "start", "too_few_fresh", "reuse", "max_reuse", "reuse", "max_reuse",
    ]  # fmt: skip
    assert policy.calls == 51
    assert sum(not result.fresh for result in results) == 50


@pytest.mark.parametrize("mode", ["paper", "guarded"])
def test_the_longest_run_of_reuse_is_the_cap_however_steady_the_policy(mode: str) -> None:
    """A gate that remembered reused actions would find angle 0 and overlap 1 for ever."""
    values = with_values(gate__mode=mode, gate__max_reuse=3, gate__max_age_s=60.0)
    results = run(Stepper(ScriptedPolicy(), SPEC), 40, values)
    pattern = "".join("C" if result.fresh else "R" for result in results)
    assert pattern == ("CC" + "RRRC" * 10)[:40]


def test_fresh_between_spaces_the_runs_of_reuse() -> None:
    values = with_values(gate__fresh_between=3, gate__max_reuse=2)
    pattern = "".join("C" if result.fresh else "R" for result in run(Stepper(ScriptedPolicy(), SPEC), 17, values))
    assert pattern == "CC" + "RRCCC" * 3


def test_a_reused_step_gives_the_last_fresh_action_and_says_how_old_it_is() -> None:
    results = run(Stepper(ScriptedPolicy(), SPEC), 3)
    fresh, reused = results[1:]
    assert reused.inference is fresh.inference
    np.testing.assert_array_equal(reused.command, fresh.command)
    assert reused.decision.age_s == pytest.approx(0.1)
    assert reused.inference_s == 0.0
    assert (fresh.step, reused.step) == (1, 2)


def test_mode_off_runs_the_model_every_time_and_a_mode_takes_effect_at_the_next_step() -> None:
    policy = ScriptedPolicy()
    stepper = Stepper(policy, SPEC)
    run(stepper, 10, with_values(gate__mode="off"))
    assert policy.calls == 10
    assert stepper.step(make_observation(2.0), DEFAULTS).decision.reason is Reason.REUSE
    assert stepper.step(make_observation(2.1), with_values(gate__mode="off")).decision.reason is Reason.MODE_OFF


def test_a_new_instruction_forgets_at_once_in_every_mode() -> None:
    for mode in ("off", "paper", "guarded"):
        stepper = Stepper(ScriptedPolicy(), SPEC)
        run(stepper, 2, with_values(gate__mode=mode))
        stepper.step(make_observation(1.2, "close the drawer"), with_values(gate__mode=mode))
        after = stepper.step(make_observation(1.3, "close the drawer"), DEFAULTS)
        assert after.decision.reason is Reason.TOO_FEW_FRESH
        assert math.isnan(after.decision.angle_deg)


def test_a_reset_is_the_next_reason_and_reaches_the_policy() -> None:
    policy = ScriptedPolicy()
    stepper = Stepper(policy, SPEC)
    run(stepper, 3)
    stepper.reset(Reason.EMERGENCY_STOP)
    result = stepper.step(make_observation(1.3), DEFAULTS)
    assert (result.decision.reason, result.resets, result.step) == (Reason.EMERGENCY_STOP, 1, 3)


def test_a_scene_that_jumps_is_looked_at() -> None:
    stepper = Stepper(ScriptedPolicy(), SPEC)
    run(stepper, 2)
    assert stepper.step(make_observation(1.2, level=180), DEFAULTS).decision.reason is Reason.SCENE_CHANGED


@pytest.mark.parametrize("error", [ObservationError("bad image"), RuntimeError("CUDA error")])
def test_a_step_that_fails_leaves_no_trace(error: Exception) -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise error

    stepper = Stepper(ScriptedPolicy(before=fail), SPEC)
    stepper.step(make_observation(1.0), DEFAULTS)
    state = stepper.state
    with pytest.raises(type(error)):
        stepper.step(make_observation(1.1), DEFAULTS)
    assert stepper.state is state


def test_an_action_that_is_not_finite_never_becomes_a_command() -> None:
    stepper = Stepper(ScriptedPolicy([[0.5, math.nan, 0.0, 1.0]]), SPEC)
    with pytest.raises(ActionError, match="'y'"):
        stepper.step(make_observation(1.0), DEFAULTS)


def test_a_policy_of_another_size_is_refused_before_the_first_step() -> None:
    with pytest.raises(ActionError, match="3 dimensions"):
        Stepper(ScriptedPolicy([[0.0, 0.0, 0.0]]), SPEC)


def test_putting_the_state_back_undoes_a_step() -> None:
    policy = ScriptedPolicy([[0.5, 0, 0, 1], [0.5, 0, 0, 1], [0.1, 0.9, 0, 1]])
    stepper = Stepper(policy, SPEC)
    run(stepper, 2)
    before = stepper.state
    first = stepper.step(make_observation(1.2), DEFAULTS)
    stepper.state = before
    second = stepper.step(make_observation(1.2), DEFAULTS)
    assert repr(first.decision) == repr(second.decision)
    np.testing.assert_array_equal(first.command, second.command)


# Limits along a run.


def test_a_command_ramps_up_from_rest_and_again_after_a_stop() -> None:
    values = with_values(limits__max_step=(0.002, 1.0, 1.0, 1.0))
    stepper = Stepper(ScriptedPolicy(), SPEC)  # asks for 0.005
    assert [result.command[0, 0] for result in run(stepper, 3, values)] == pytest.approx([0.002, 0.004, 0.005])
    stepper.reset(Reason.IMAGE_TIMEOUT)
    again = stepper.step(make_observation(9.0), values)
    assert again.command[0, 0] == pytest.approx(0.002)
    assert again.clamped.tolist() == [[True, False, False, False]]


JOINTS = ActionSpec(("a", "b"), (ActionKind.ABSOLUTE, ActionKind.GRIPPER), 0.1)


def test_an_absolute_dimension_starts_from_where_the_joint_is() -> None:
    values = Settings().with_values(
        {"action.names": ("a", "b"), "action.kinds": ("absolute", "gripper"), "limits.max_step": (0.1, 2.0)}
    )
    stepper = Stepper(ScriptedPolicy([[1.0, 1.0]], scale=1.0), JOINTS)
    at = dataclasses.replace(make_observation(1.0), joint_positions={"a": 0.5})
    assert stepper.step(at, values).command.tolist() == [[0.6, 1.0]]
    assert stepper.step(make_observation(1.1), values).command[0, 0] == pytest.approx(0.7)
    stepper.reset(Reason.FAULT)  # the joint is not reported now: it is taken to be where it was sent
    assert stepper.step(make_observation(1.2), values).command[0, 0] == pytest.approx(0.8)


# Chunks.


def chunk_policy(steps: int) -> ScriptedPolicy:
    """Answers every call with the chunk 1 … T in x, absolute."""
    chunk = np.column_stack([np.arange(1.0, steps + 1), np.ones(steps)])
    return ScriptedPolicy(
        [chunk / [steps, 1.0]], answer=lambda _, scripted: dataclasses.replace(scripted, action=chunk)
    )


def test_a_chunk_is_followed_to_its_end_and_no_further() -> None:
    results = run(Stepper(chunk_policy(4), JOINTS), 6, with_values())
    assert [result.command[:, 0].tolist() for result in results] == [
        [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4], [4, 4, 4, 4], [1, 2, 3, 4], [2, 3, 4, 4],
    ]  # fmt: skip
    told = [(result.reported["chunk_row"], result.reported["chunk_size"]) for result in results]
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 4), (1, 4)]
    assert [str(result.decision.reason) for result in results] == [
        "start", "open_loop", "open_loop", "open_loop", "chunk_end", "open_loop",
    ]  # fmt: skip
    assert not any(result.reused for result in results)


def test_the_change_at_a_new_chunk_is_told_and_stays_within_the_step() -> None:
    values = Settings().with_values(
        {"action.names": ("a", "b"), "action.kinds": ("absolute", "gripper"), "limits.max_step": (1.5, 2.0)}
    )
    results = run(Stepper(chunk_policy(4), JOINTS), 5, values)
    assert [result.handover.tolist() for result in results] == [[], [], [], [], [1.5, 0.0]]
    assert all(result.handover.size == 0 for result in run(Stepper(ScriptedPolicy(), SPEC), 3, with_values()))


def step_limited(command_type: str) -> Settings:
    named = {"action.names": ("a", "b"), "action.kinds": ("absolute", "gripper"), "limits.max_step": (1.5, 2.0)}
    return Settings().with_values(named | {"command.type": command_type})


def held_after(stepper: Stepper, *rows: int) -> list[float]:
    """What the first dimension is told after so many time steps."""
    return [float(stepper.state.held(1.0 + 0.1 * row, 0.1)[0]) for row in rows]  # type: ignore[index]


def test_step_limits_count_from_the_row_in_force_not_from_the_end_of_the_last_chunk() -> None:
    values = step_limited("JointTrajectory")
    stepper = Stepper(chunk_policy(4), JOINTS)
    assert stepper.state.held(1.3, 0.1) is None
    stepper.step(make_observation(1.0), values)
    assert held_after(stepper, 0, 1, 2, 3, 4, 9) == [1, 1, 2, 3, 4, 4]
    later = stepper.step(make_observation(1.4), values)  # the fourth row, 4, was in force; the new chunk starts at 1
    assert later.command[:, 0].tolist() == [2.5, 2.0, 3.0, 4.0]


def test_of_a_chunk_only_rows_that_the_robot_was_told_are_in_force() -> None:
    """After lost images the robot still stands at the first row: any command but a trajectory carries no other."""
    values = step_limited("Float64MultiArray")
    stepper = Stepper(chunk_policy(4), JOINTS)
    stepper.step(make_observation(1.0), values)
    assert held_after(stepper, 0, 1, 4, 9) == [1, 1, 1, 1]
    later = stepper.step(make_observation(1.3), values)
    assert later.command[:, 0].tolist() == [2.5, 4.0, 4.0, 4.0]


# What no sequence may break.


KEPT_SETS = [None, tuple(range(40)), tuple(range(2, 42)), tuple(range(24, 64)), tuple(range(8))]


def random_policy(rng: np.random.Generator) -> ScriptedPolicy:
    """Mostly steady, with still, turning and gripper-flipping actions, some in chunks, and all kinds of kept sets."""
    motions = rng.choice([-0.5, -0.01, 0.0, 0.01, 0.49, 0.5, 0.5, 0.5], (6, 3))
    motions[0] *= 0.02  # often starts from rest
    grips = rng.choice([-1.0, 0.0, 1.0, 1.0, 1.0], (6, 1))
    script = np.hstack([motions, grips])[np.sort(rng.integers(0, 6, 40))]
    kept = [KEPT_SETS[index] for index in rng.choice(5, 40, p=[0.05, 0.6, 0.25, 0.05, 0.05])]
    size = rng.choice([1, 1, 3])
    return ScriptedPolicy([script[index : index + size] for index in range(41 - size)], kept)


def random_settings(rng: np.random.Generator) -> Settings:
    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    calibration = pick("off", "off", "online")
    return DEFAULTS.with_values(
        {
            "control.prefetch": pick(0, 1, 2) if calibration == "off" else 0,
            "gate.mode": pick("off", "paper", "guarded", "guarded"),
            "gate.delta": float(rng.uniform()),
            "gate.max_angle_deg": pick(0.0, 10.0, 180.0),
            "gate.max_reuse": pick(0, 1, 2, 3, 4),
            "gate.fresh_between": pick(1, 2, 3),
            "gate.replan_after": pick(0, 1, 2),
            "gate.max_age_s": pick(0.05, 0.25, 10.0),
            "limits.lower": pick((), (-0.003,) * 4),
            "limits.upper": pick((), (0.003,) * 4),
            "limits.max_step": pick((), (0.001,) * 4),
            "gate.calibration": calibration,
            "calibration.risk": 0.5,
            "calibration.audit_rate": pick(0.3, 1.0),
            "calibration.score": pick((), (), (0.0,) * 8),  # every reuse is off as likely as not
        }
    )


def random_run(seed: int) -> Iterator[tuple[StepResult, float, bool]]:
    """Every step with the time since the one before it, and whether a reset came between."""
    rng = np.random.default_rng(seed)
    stepper, values, now_s = Stepper(random_policy(rng), SPEC), random_settings(rng), 10.0
    for _ in range(40):
        elapsed_s = float(rng.choice([0.1, 0.0, -0.5, 0.3, 2.0], p=[0.8, 0.05, 0.05, 0.05, 0.05]))
        now_s += elapsed_s
        reset = bool(rng.random() < 0.05)
        if reset:
            stepper.reset()
        instruction = "close the drawer" if rng.random() < 0.1 else "open the drawer"
        level = 180 if rng.random() < 0.1 else 100
        yield stepper.step(make_observation(now_s, instruction, level, (16, 16)), values), elapsed_s, reset


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_every_reuse_is_inside_its_caps(seed: int) -> None:
    results: list[StepResult] = []
    since, in_a_row, fresh_since = 0, 0, math.inf
    for result, elapsed_s, reset in random_run(seed):
        decision, gate, size = result.decision, result.decision.settings, len(result.command)
        if result.fresh:
            since, in_a_row, fresh_since = 0, 0, fresh_since + 1
        else:
            since, in_a_row = since + 1, in_a_row + result.reused
            fresh = results[-since]
            assert fresh.fresh
            assert not reset
            assert elapsed_s > 0.0
            assert result.observation.instruction == fresh.observation.instruction
            assert size == 1 or 0 < result.chunk_row < size
            assert in_a_row == decision.reused_in_a_row
            assert gate.mode != "guarded" or decision.age_s <= gate.max_age_s
            assert gate.mode != "guarded" or decision.scene_changed < gate.scene_patches
        if result.reused:
            assert gate.mode != "off"
            assert in_a_row <= gate.max_reuse if size == 1 else gate.max_reuse > 0
            assert gate.mode != "guarded" or in_a_row > 1 or fresh_since >= gate.fresh_between
            fresh_since = 0
        results.append(result)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_no_command_leaves_its_limits(seed: int) -> None:
    last = None
    for result, _, reset in random_run(seed):
        limits, command = result.settings.limits, result.command
        assert np.isfinite(command).all()
        assert (command <= (limits.upper or math.inf)).all()
        assert (command >= (limits.lower or -math.inf)).all()
        if limits.max_step and last is not None and not reset:
            assert len(command) > 1 or (np.abs(command - last) <= 0.001 + 1e-12).all()
            assert (np.abs(np.diff(command, axis=0)) <= 0.001 + 1e-12).all()
            assert (result.handover <= 0.001 + 1e-12).all()
        last = command


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_the_same_observations_give_the_same_commands_again(seed: int) -> None:
    once, again = (
        [(repr(result.decision), result.command.tolist()) for result, _, _ in random_run(seed)] for _ in range(2)
    )
    assert once == again


def test_the_random_runs_reach_every_reason_that_a_run_can_have() -> None:
    """Properties that hold of nothing prove nothing."""
    reached = {result.decision.reason for seed in range(40) for result, _, _ in random_run(seed)}
    guards = {Reason.SILENCE, Reason.PUBLISHER, Reason.STALE_COMMAND, Reason.NOT_FINITE, Reason.LIMITS}
    assert set(Reason) - reached == EMPTYING - {Reason.START, Reason.RESET} | guards


def test_the_policy_is_handed_the_last_fresh_result_until_a_reset() -> None:
    policy = ScriptedPolicy()
    stepper = Stepper(policy, SPEC)
    fresh = [result.inference for result in run(stepper, 4, with_values(gate__max_reuse=1)) if result.fresh]
    assert len(fresh) == 3  # the third of four steps is reused
    stepper.reset()
    run(stepper, 1)
    assert [id(request.previous) for request in policy.requests] == [id(None), id(fresh[0]), id(fresh[1]), id(None)]


# Drafts.


def draft_policy() -> ScriptedPolicy:
    """Answers the n-th call with tokens from 10 n on, and accepts three tokens of every draft."""
    numbers = itertools.count()

    def answer(request: Request, scripted: Inference) -> Inference:
        counts = {"draft_tokens": 4, "draft_accepted": 3, "draft_near": 1} if request.draft else {}
        return dataclasses.replace(scripted, tokens=np.arange(4) + 10 * next(numbers), **counts)

    return ScriptedPolicy([[0.5, 0.0, 0.0, 1.0], [0.5, 0.01, 0.0, 1.0], [0.5, 0.02, 0.0, 1.0]], answer=answer)


DRAFT_VALUES = {"decode__mode": "draft", "decode__accept_bins": 3, "decode__max_near": 2}
DRAFT = with_values(**DRAFT_VALUES)


def offered(policy: ScriptedPolicy) -> list[int | None]:
    """Which call's tokens each call was offered."""
    drafts = [request.draft for request in policy.requests]
    return [None if draft is None else int(draft.tokens[0]) // 10 for draft in drafts]


def test_the_last_fresh_tokens_are_the_draft_also_behind_reused_steps() -> None:
    policy = draft_policy()
    one_at_a_time = DRAFT.with_values({"gate.max_reuse": 1})
    results = run(Stepper(policy, SPEC), 6, one_at_a_time)
    assert [result.fresh for result in results] == [True, True, False, True, False, True]
    assert offered(policy) == [None, 0, 1, 2]
    draft = policy.requests[1].draft
    assert draft is not None and (draft.accept_bins, draft.max_near) == (3, 2)
    assert [result.reported["draft_accepted"] for result in results] == [0, 3, 0, 3, 0, 3]


def test_greedy_offers_nothing_and_the_mode_takes_effect_at_the_next_step() -> None:
    policy = draft_policy()
    stepper = Stepper(policy, SPEC)
    off = {"gate__mode": "off"}
    run(stepper, 2, with_values(**off))
    run(stepper, 1, with_values(**off, decode__mode="draft"), start_s=1.2)
    run(stepper, 1, with_values(**off), start_s=1.3)
    assert offered(policy) == [None, None, 1, None]


def test_no_draft_outlives_a_reset_an_instruction_a_gap_or_a_clock_that_jumps() -> None:
    policy = draft_policy()
    stepper = Stepper(policy, SPEC)
    run(stepper, 2, DRAFT)
    stepper.reset()
    stepper.step(make_observation(1.2), DRAFT)
    stepper.step(make_observation(1.3, "close the drawer"), DRAFT)
    stepper.step(make_observation(9.0, "close the drawer"), DRAFT)
    stepper.step(make_observation(8.0, "close the drawer"), DRAFT)
    stepper.step(make_observation(8.1, "close the drawer"), DRAFT)
    assert offered(policy) == [None, 0, None, None, None, None, 5]


def test_an_undone_step_leaves_no_draft_and_other_decoding_runs_the_model_again() -> None:
    policy = draft_policy()
    stepper = Stepper(policy, SPEC)
    run(stepper, 1, DRAFT)
    before = stepper.state
    tried = stepper.step(make_observation(1.1), DRAFT)
    stepper.state = before
    again = stepper.step(make_observation(1.1), with_values(**DRAFT_VALUES, gate__delta=0.9), tried=tried)
    assert again.inference is tried.inference
    stepper.state = before
    other = stepper.step(make_observation(1.1), DEFAULTS, tried=tried)
    assert other.inference is not tried.inference
    stepper.state = before
    stepper.step(make_observation(1.1), DRAFT)
    assert offered(policy) == [None, 0, None, 0]
