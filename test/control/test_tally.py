"""What a run has done so far, summed up from the results of real steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.tally import Tally
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings


@pytest.fixture(scope="module")
def step() -> StepResult:
    return Stepper(ScriptedPolicy(), SPEC).step(make_observation(1.0), Settings())


def fresh(step: StepResult, seconds: float, offered: int = 0, accepted: int = 0, **changes: Any) -> StepResult:
    inference = dataclasses.replace(step.inference, draft_tokens=offered, draft_accepted=accepted, elapsed_s=seconds)
    return dataclasses.replace(step, fresh=True, inference=inference, step_s=2 * seconds, **changes)


def reused(step: StepResult, seconds: float, **decided: Any) -> StepResult:
    decision = dataclasses.replace(step.decision, reason=Reason.REUSE, **decided)
    return dataclasses.replace(step, fresh=False, decision=decision, step_s=seconds)


def test_a_tally_of_nothing() -> None:
    tally = Tally()
    assert (tally.steps, tally.inferred, tally.reused, tally.clamped, tally.scene_alarms) == (0,) * 5
    assert (tally.speed_scale, dict(tally.reasons), dict(tally.clamped_by)) == (0.0, {}, {})
    assert math.isnan(tally.draft_acceptance(0.0))


def test_steps_are_counted_by_what_they_did(step: StepResult) -> None:
    clamped = np.array([[True, False, False, True], [True, False, False, False]])
    tally = Tally()
    tally.add(fresh(step, 0.2, clamped=clamped, speed_scale=0.3), 0.0, 0.5)
    tally.add(fresh(step, 0.4, clamped=clamped[1:], speed_scale=0.6), 0.1, 0.7)
    tally.add(reused(step, 0.01, scene_changed=999), 0.2, 0.03)
    assert (tally.steps, tally.inferred, tally.reused, tally.clamped, tally.scene_alarms) == (3, 2, 1, 2, 1)
    assert dict(tally.clamped_by) == {0: 2, 3: 1}  # once a step, however many rows
    assert dict(tally.reasons) == {Reason.START: 2, Reason.REUSE: 1}
    assert tally.speed_scale == step.speed_scale  # of the last command


def test_times_are_means_of_what_they_are_about(step: StepResult) -> None:
    tally = Tally()
    tally.add(fresh(step, 0.2), 0.0, 0.5)
    remote = fresh(step, 0.4)
    remote = dataclasses.replace(remote, inference=dataclasses.replace(remote.inference, timings_s={"network": 0.1}))
    tally.add(remote, 0.1, 0.7)
    tally.add(reused(step, 0.03), 0.2, 0.09)
    assert tally.network.mean(0.2) == 0.1  # remote inferences alone
    assert tally.inference.mean(0.2) == pytest.approx(0.3)  # fresh steps alone
    assert tally.latency.mean(0.2) == pytest.approx((0.4 + 0.8 + 0.03) / 3)
    assert tally.stamp_latency.mean(0.2) == pytest.approx((0.5 + 0.7 + 0.09) / 3)
    assert tally.reuse.mean(0.2) == pytest.approx(1 / 3)


def test_a_draft_counts_where_one_was_offered_and_while_the_window_lasts(step: StepResult) -> None:
    tally = Tally(span_s=5.0)
    tally.add(fresh(step, 0.2, offered=4, accepted=1), 0.0, 0.0)
    tally.add(fresh(step, 0.2, offered=6, accepted=6), 3.0, 0.0)
    tally.add(fresh(step, 0.2), 3.1, 0.0)
    tally.add(reused(step, 0.01), 3.2, 0.0)
    assert tally.draft_acceptance(3.2) == pytest.approx(7 / 10)
    assert tally.draft_acceptance(6.0) == pytest.approx(1.0)
    for window in (tally.latency, tally.stamp_latency, tally.inference, tally.reuse, tally.offered, tally.accepted):
        assert window.span_s == 5.0
