"""Calibration by a learnt score: it judges in the place of α and φ′, stays within the guards, and repeats."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import example, given
from hypothesis import strategies as st

from flashvla_ros.bags.learning import auc
from flashvla_ros.bags.steps import equal
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import CalibrationSettings, PruningSettings, Settings
from flashvla_ros.gate import score
from flashvla_ros.gate.calibration import CalibrationState, entering
from flashvla_ros.gate.decision import FreshComparison, GateMeasurements
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.scene import SceneChange
from flashvla_ros.gate.score import SIGNS, UNLEARNT, predicted_risk, signs, updated

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
    def risk(constant: float, sign: float) -> float:
        return predicted_risk(np.full(len(SIGNS), sign), CalibrationSettings(score=(*weights, constant)))

    assert 0.0 < risk(constant, 1.0) <= 1.0
    assert risk(constant + 1.0, 1.0) >= risk(constant, 1.0)
    assert risk(0.0, 0.0) == 0.5


def outcomes(count: int, seed: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Signs as on a robot, and whether a reuse is off, by the angle alone."""
    random = np.random.default_rng(seed)
    for values in random.normal(size=(count, len(SIGNS))):
        off = random.random() < 1.0 / (1.0 + np.exp(1.5 - 2.0 * values[SIGNS.index("angle")]))
        yield score._MIDDLE[:-1] + score._SPREAD[:-1] * values, bool(off)


def told_apart(allowed: CalibrationSettings, learnt: np.ndarray) -> float:
    signs_, off = zip(*outcomes(1000, 1), strict=True)
    return auc(np.array([predicted_risk(found, allowed, learnt) for found in signs_]), np.array(off))


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_it_learns_from_nothing_which_sign_counts(weight):
    """Outcomes of audited reuses stand for ten: one in ten of them is seen."""
    allowed, learnt = CalibrationSettings(learning=0.2), UNLEARNT
    assert told_apart(allowed, learnt) == 0.5
    for found, off in outcomes(400, 0):
        learnt = updated(learnt, found, predicted_risk(found, allowed, learnt), off, weight, allowed.learning)
    assert told_apart(allowed, learnt) > 0.8
    assert np.abs(learnt[0]).argmax() in (SIGNS.index("angle"), len(SIGNS))
    assert told_apart(CalibrationSettings(score=BY_CONFIDENCE), learnt) < 0.55  # without learning none of it counts


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans(), st.floats(1.0, 100.0)), max_size=200),
    st.floats(0.0, 1.0),
)
def test_what_is_learnt_stays_finite(seen, rate):
    allowed, learnt = CalibrationSettings(learning=rate), UNLEARNT
    for value, off, weight in seen:
        found = np.full(len(SIGNS), value)
        learnt = updated(learnt, found, predicted_risk(found, allowed, learnt), off, weight, rate)
    assert np.isfinite(learnt).all()


def test_a_run_learns_where_the_outcome_is_seen_alone_and_keeps_it_beyond_a_claim():
    settings = ONLINE.with_values({"calibration.score": [], "calibration.learning": 0.2, "calibration.max_reuse": 3})
    results = run(settings, count=120)
    for result, following in itertools.pairwise(results):
        before, after = result.calibration.learnt, following.calibration.learnt
        assert (not np.array_equal(before, after)) == (result.off is not None)
    assert {result.decision.reason for result in results} > {Reason.REUSE, Reason.AUDIT}
    last = results[-1].calibration
    assert entering(last, "another instruction", settings).learnt is last.learnt
    assert entering(last, "go", settings.with_values({"calibration.risk": 0.2})).learnt is last.learnt
    score = {"calibration.score": [0.1] * (len(SIGNS) + 1)}
    for other in (score, {"calibration.tolerance": 0.5}, {"gate.gripper_still": 0.5}, {"gate.gripper_middle": 0.5}):
        assert not entering(last, "go", settings.with_values(other)).learnt.any()  # it was added to another score
    again = CalibrationState.unpacked(last.packed().tolist(), last.claim)
    np.testing.assert_array_equal(again.learnt, last.learnt)


def test_the_parameter_has_one_weight_for_each_sign_and_a_constant():
    assert len(ONLINE.calibration.score) == len(SIGNS) + 1
    with pytest.raises(SettingsError, match=r"calibration.score must have 8 values, as flashvla-ros tune --score"):
        ONLINE.with_values({"calibration.score": [1.0]})
    found = np.array([math.log(0.2), *[0.0] * 6])
    assert math.isclose(predicted_risk(found, ONLINE.calibration), 0.696, abs_tol=0.001)
