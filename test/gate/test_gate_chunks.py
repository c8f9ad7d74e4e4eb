"""Chunks: which rows are compared, when a chunk is followed, left early or skipped over, and that it never outlasts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.chunk import aligned_rows, elapsed_rows, replan_row
from flashvla_ros.core.reasons import WITHOUT_MODEL, Reason
from flashvla_ros.core.settings import GateSettings, PruningSettings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.decision import FreshComparison, decide
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.scene import GRID

DT_S = 0.1


def shown(row: float, level: int = 100) -> GateInput:
    return GateInput("open the drawer", 1.0 + DT_S * row, np.full((1, GRID, GRID, 3), level, np.float32))


def planned(row: int, motion: FloatArray, gripper: float = 1.0) -> FreshResult:
    kept = np.arange(40)
    return FreshResult(
        shown(row), motion, np.full((len(motion), 1), gripper), kept, 64, PruningSettings(keep_ratio=0.625), DT_S
    )


def path(first: int, size: int) -> FloatArray:
    """Rows of one curve, from time step `first` on: what a policy says that keeps to its plan."""
    at = 0.4 * np.arange(first, first + size)
    return np.column_stack([np.cos(at), np.sin(at), 0.2 * np.ones(size)])


def remembering(*results: FreshResult) -> GateMemory:
    memory = GateMemory()
    for result in results:
        memory = memory.after_fresh(result, GateSettings(stale_gap_s=9.0))
    return memory


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 15))
def test_aligned_rows_speak_of_the_same_instants(size: int, other: int, apart: int) -> None:
    before, after = aligned_rows(np.arange(size)[:, None], apart + np.arange(other)[:, None], apart)
    assert len(before) == len(after) >= 1
    if apart < size:
        np.testing.assert_array_equal(before, after)
        assert len(before) == min(size - apart, other)
    else:
        assert (before.item(), after.item()) == (size - 1, apart)


@given(st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3), st.integers(0, 5))
def test_single_actions_are_compared_as_they_are(values: list[float], apart: int) -> None:
    first, second = np.array([values]), np.array([values[::-1]])
    before, after = aligned_rows(first, second, apart)
    np.testing.assert_array_equal(before, first)
    np.testing.assert_array_equal(after, second)


@pytest.mark.parametrize("apart", [1, 3, 7])
def test_a_policy_that_keeps_to_its_plan_has_an_angle_of_zero(apart: int) -> None:
    compared = FreshComparison.of(planned(0, path(0, 8)), planned(apart, path(apart, 8)), GateSettings())
    assert compared.angle_deg == pytest.approx(0.0, abs=1e-6)
    ends = FreshComparison.of(planned(0, path(0, 8)), planned(8, path(8, 8)), GateSettings())
    assert 10.0 < ends.angle_deg < 30.0  # one time step lies between what is compared


def test_a_chunk_is_followed_whatever_the_plans_before_said() -> None:
    memory = remembering(planned(0, path(0, 4), gripper=-1.0), planned(4, -path(0, 4)))
    for mode in ("paper", "guarded", "off"):
        reasons = [decide(memory, shown(row), GateSettings(mode=mode)).reason for row in (5, 6, 7, 8, 9)]
        end = Reason.MODE_OFF if mode == "off" else Reason.CHUNK_END
        assert reasons == [Reason.OPEN_LOOP] * 3 + [end] * 2


def test_a_chunk_is_left_early_where_the_scene_has_changed_or_it_is_too_old() -> None:
    memory = remembering(planned(0, path(0, 8)))
    assert decide(memory, shown(1), GateSettings()).reason is Reason.OPEN_LOOP
    assert decide(memory, shown(1, level=250), GateSettings()).reason is Reason.SCENE_CHANGED
    assert decide(memory, shown(1, level=250), GateSettings(mode="paper")).reason is Reason.OPEN_LOOP
    assert decide(memory, shown(4), GateSettings(max_age_s=0.3)).reason is Reason.MAX_AGE
    other = dataclasses.replace(shown(1), instruction="close the drawer")
    assert decide(memory, other, GateSettings()).reason is Reason.NEW_INSTRUCTION


def test_a_run_that_is_due_is_skipped_under_the_conditions_of_reuse() -> None:
    agreeing = remembering(planned(0, path(0, 8)), planned(4, path(4, 8)))
    half = GateSettings(replan_after=4)
    reasons = [decide(agreeing, shown(row), half).reason for row in range(5, 13)]
    assert reasons == [Reason.OPEN_LOOP] * 3 + [Reason.REUSE] * 4 + [Reason.CHUNK_END]
    turned = remembering(planned(0, path(0, 8)), planned(4, path(5, 8)))
    assert decide(turned, shown(8), half).reason is Reason.ANGLE
    assert decide(remembering(planned(4, path(4, 8))), shown(8), half).reason is Reason.TOO_FEW_FRESH
    assert decide(agreeing, shown(8), dataclasses.replace(half, max_reuse=0)).reason is Reason.MAX_REUSE
    every = GateSettings(replan_after=1, max_reuse=2)
    assert [decide(agreeing, shown(row), every).reason for row in (5, 6, 7)] == [
        Reason.REUSE,
        Reason.REUSE,
        Reason.MAX_REUSE,
    ]


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(2, 10),
    replan_after=st.integers(0, 12),
    mode=st.sampled_from(["off", "paper", "guarded"]),
    gaps=st.lists(st.integers(1, 4), min_size=1, max_size=25),
    max_reuse=st.integers(0, 20),
)
def test_no_chunk_is_used_beyond_its_end(
    size: int, replan_after: int, mode: str, gaps: list[int], max_reuse: int
) -> None:
    gate = GateSettings(
        mode=mode, replan_after=replan_after, max_reuse=max_reuse, max_age_s=60.0, stale_gap_s=60.0, max_angle_deg=180.0
    )
    memory, row, made, reused = GateMemory(), 0, 0, 0
    for gap in gaps:
        current = shown(row)
        decision = decide(memory, current, gate)
        if decision.reuse:
            age = elapsed_rows(decision.age_s, DT_S)
            assert 0 < age == row - made < size
            due = age >= replan_row(size, replan_after)
            assert (decision.reason is Reason.REUSE) == due
            assert not due or (mode != "off" and max_reuse > 0)
            reused += due
            assert decision.reused_in_a_row == reused
            memory = memory.after_step_without_model(decision.reason, current)
        else:
            assert decision.reason not in WITHOUT_MODEL
            memory, made, reused = memory.after_fresh(planned(row, path(row, size)), gate), row, 0
        row += gap
