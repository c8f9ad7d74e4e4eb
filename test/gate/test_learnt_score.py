"""Calibration by a learnt score: it judges in the place of α and φ′, stays within the guards, and repeats."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import example, given
from hypothesis import strategies as st

from flashvla_ros.bags.steps import equal
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.gate.decision import FreshComparison, GateMeasurements
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.scene import SceneChange
from flashvla_ros.gate.score import SIGNS, predicted_risk, signs

ANY = st.floats(allow_nan=True, allow_infinity=True)
BY_CONFIDENCE = (-3.0, *[0.0] * (len(SIGNS) - 1), -4.0)  # a risk of 2 % at 1, and of 71 % at a fifth
ONLINE = Settings().with_values(
    {
        "gate.calibration": "online",
        "calibration.audit_rate": 0.3,
        "calibration.score": BY_CONFIDENCE,
    }
)


def run(settings: Settings, count: int = 60, level: float = 0.5, start: int = 0) -> list[StepResult]:
    """Steady motion; the model is unsure at every fifth call."""
    answer = lambda _, made: dataclasses.replace(made, confidence=0.2 if policy.calls % 5 == 0 else 1.0)  # noqa: E731
    policy = ScriptedPolicy(actions=[[0.5, 0.0, 0.0, 1.0]], answer=answer)
    stepper = Stepper(policy, SPEC)
    stepper.state = dataclasses.replace(stepper.state, calibration=CalibrationState(level))
    return [stepper.step(make_observation(0.1 * (start + index)), settings) for index in range(count)]


def test_an_unsure_action_is_not_repeated_though_angle_and_overlap_are_perfect():
    results = run(ONLINE)
    judged = [result for result in results if result.decision.reason in (Reason.REUSE, Reason.AUDIT, Reason.RISK)]
    assert {result.decision.reason for result in judged} == {Reason.REUSE, Reason.AUDIT, Reason.RISK}
    for before, result in itertools.pairwise(results):
        if result.decision.reason is Reason.RISK:
            assert before.inference.confidence == 0.2
        if result.decision.reason is Reason.REUSE:
            assert result.inference.confidence == 1.0
            assert result.decision.angle_deg == 0.0
    plain = run(ONLINE.with_values({"calibration.score": []}))
    assert any(result.reused and result.inference.confidence == 0.2 for result in plain)


def test_the_guards_and_the_cap_stay():
    assert not any(result.reused for result in run(ONLINE.with_values({"calibration.max_reuse": 0})))
    capped = run(ONLINE.with_values({"calibration.max_reuse": 1}), level=1.0)
    assert max(result.decision.reused_in_a_row for result in capped) == 1
    assert not any(result.reused for result in run(ONLINE, level=0.0, count=5))


def test_the_same_observations_give_the_same_again():
    for one, other in zip(run(ONLINE), run(ONLINE), strict=True):
        assert all(equal(value, other.reported[name]) for name, value in one.reported.items())


@given(ANY, ANY, ANY, ANY, ANY, ANY)
@example(0.0, 0.0, 0.0, 0.0, 0.0, 1.797e307)
def test_signs_are_finite_whatever_is_unknown(confidence, before, angle, overlap, mean, age_s):
    frame = GateInput("go", 0.0, np.zeros((1, 16, 16, 3), dtype=np.float32))
    last, previous = (
        FreshResult(frame, np.ones((1, 3)), np.ones((1, 1)), None, 0, PruningSettings(), confidence=abs(value))
        for value in (confidence, before)
    )
    measured = GateMeasurements(
        FreshComparison(angle_deg=abs(angle), corrected_overlap=overlap), SceneChange(mean=abs(mean)), age_s
    )
    found = signs(GateMemory(last=last, previous=previous), measured)
    assert found.shape == (len(SIGNS),)
    assert np.isfinite(found).all()
    assert not signs(GateMemory(), measured).any()


@given(st.lists(st.floats(-1e6, 1e6), min_size=len(SIGNS), max_size=len(SIGNS)), st.floats(-1e6, 1e6))
def test_a_risk_is_a_probability_and_grows_with_what_has_weight(weights, constant):
    risk = predicted_risk(np.ones(len(SIGNS)), (*weights, constant))
    assert 0.0 < risk <= 1.0
    assert predicted_risk(np.ones(len(SIGNS)), (*weights, constant + 1.0)) >= risk
    assert predicted_risk(np.zeros(len(SIGNS)), (*weights, 0.0)) == 0.5


def test_the_parameter_has_one_weight_for_each_sign_and_a_constant():
    assert len(ONLINE.calibration.score) == len(SIGNS) + 1
    with pytest.raises(SettingsError, match=r"calibration.score must have 8 values, as flashvla-ros tune --score"):
        ONLINE.with_values({"calibration.score": [1.0]})
    assert math.isclose(predicted_risk(np.array([math.log(0.2), *[0.0] * 6]), BY_CONFIDENCE), 0.696, abs_tol=0.001)
