"""Blending chunks: the closed form equals the buffer of UniVLA's code, and rotations are blended as rotations."""

from __future__ import annotations

import math

import numpy as np
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.blend import blended, lasting
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray

POSE = ActionSpec(
    ("x", "y", "z", "qx", "qy", "qz", "qw"), (ActionKind.ABSOLUTE,) * 7, dt_s=0.1
)  # qx … qw of one rotation


def ensembling_buffer(chunks: FloatArray, decay: float) -> FloatArray:
    """What a table of [times, times + T] filled chunk by chunk gives, as UniVLA's and ACT's evaluations do it."""
    count, size, dimensions = chunks.shape
    table, filled = np.zeros((count, count + size, dimensions)), np.zeros((count, count + size), dtype=bool)
    actions = []
    for now in range(count):
        table[now, now : now + size], filled[now, now : now + size] = chunks[now], True
        said = table[filled[:, now], now]
        weights = np.exp(-decay * np.arange(len(said)))[::-1]
        actions.append((said * (weights / weights.sum())[:, None]).sum(axis=0))
    return np.stack(actions)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.0, 2.0), st.integers(0, 2**32 - 1))
def test_the_closed_form_equals_the_buffer(size: int, count: int, decay: float, seed: int) -> None:
    chunks = np.random.default_rng(seed).normal(size=(count, size, SPEC.size))
    expected = ensembling_buffer(chunks, decay)
    plans = ()
    for now, chunk in enumerate(chunks):
        plans = (*lasting(plans, 0.1 * now, SPEC.dt_s), (0.1 * now, chunk))
        assert len(plans) == min(now + 1, size)
        mean = blended(plans, 0.1 * now, SPEC, decay)
        assert mean.shape == (size, SPEC.size)
        np.testing.assert_allclose(mean[0], expected[now], rtol=1e-12, atol=1e-12)


def test_rotations_are_brought_to_one_turn_and_sign() -> None:
    euler = ActionSpec(("x", "y", "z", "rx"), (ActionKind.ABSOLUTE,) * 4, dt_s=0.1)
    nearly = np.tile([0.0, 0.0, 0.0, math.pi - 0.1], (3, 1)), np.tile([0.0, 0.0, 0.0, 0.1 - math.pi], (3, 1))
    mean = blended(((0.0, nearly[0]), (0.1, nearly[1])), 0.1, euler, decay=0.0)
    np.testing.assert_allclose(np.abs(mean[:2, 3]), math.pi)
    turn = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.8])
    plans = (0.0, np.tile(-turn, (3, 1))), (0.1, np.tile(turn, (3, 1)))
    np.testing.assert_allclose(blended(plans, 0.1, POSE, decay=0.1), np.tile(turn, (3, 1)))


def steps(replan_after: int, blend: str, size: int = 4, count: int = 9) -> list[StepResult]:
    chunks = np.random.default_rng(0).uniform(-1.0, 1.0, (20, size, SPEC.size))
    values = {"gate.mode": "off", "gate.replan_after": replan_after, "control.blend": blend}
    stepper, given_values = Stepper(ScriptedPolicy(list(chunks)), SPEC), Settings().with_values(values)
    return [stepper.step(make_observation(1.0 + 0.1 * number), given_values) for number in range(count)]


def test_a_stepper_blends_what_overlaps_and_forgets_it_with_the_run() -> None:
    chunks = 0.01 * np.random.default_rng(0).uniform(-1.0, 1.0, (20, 4, SPEC.size))
    actions = np.stack([result.command[0] for result in steps(1, "temporal")])
    np.testing.assert_allclose(actions, ensembling_buffer(chunks[:9], 0.1), rtol=1e-12)
    plain, whole = steps(0, "none"), steps(0, "temporal")
    assert all(np.array_equal(one.command, other.command) for one, other in zip(plain, whole, strict=True))

    stepper = Stepper(ScriptedPolicy(list(chunks * 100)), SPEC)
    values = Settings().with_values({"gate.replan_after": 1, "gate.mode": "off", "control.blend": "temporal"})
    stepper.step(make_observation(1.0), values)
    stepper.reset()
    np.testing.assert_array_equal(stepper.step(make_observation(1.1), values).command, chunks[1])
    changed = stepper.step(make_observation(1.2, instruction="close the drawer"), values)
    np.testing.assert_array_equal(changed.command, chunks[2])


def test_a_chunk_goes_on_blended_between_two_runs_of_the_model() -> None:
    results = steps(2, "temporal")
    assert [result.fresh for result in results] == [True, False] * 4 + [True]
    first, second = results[0].inference.action, results[2].inference.action
    weight = math.exp(-0.2)
    expected = (second[1] + weight * first[3]) / (1.0 + weight)
    np.testing.assert_allclose(results[3].command[0], expected, rtol=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_single_actions_are_never_blended(seed: int) -> None:
    actions = np.random.default_rng(seed).uniform(-1.0, 1.0, (8, SPEC.size))
    commands = []
    for blend in ("none", "temporal"):
        stepper = Stepper(ScriptedPolicy(list(actions)), SPEC)
        values = Settings().with_values({"control.blend": blend})
        commands.append([stepper.step(make_observation(1.0 + 0.1 * number), values).command for number in range(6)])
    np.testing.assert_array_equal(*commands)
