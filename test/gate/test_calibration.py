"""Online calibration: its bound, its claims, and each rule that they rest on, broken on purpose."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.calibration import online, risk_of, steps, stream
from flashvla_ros.control.stepper import Stepper, StepperState
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings, PruningSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec
from flashvla_ros.gate import calibration
from flashvla_ros.gate.calibration import LEVELS, CalibrationState, Trial, coin
from flashvla_ros.gate.decision import FreshComparison, judge
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.score import NEVER, most_permissive, need, thresholds

Rule = Callable[..., CalibrationState]
RIGHT = calibration.after_step
RISK, RATE = 0.05, 0.2
ONLINE = online(RATE, RISK)


# Each rule, right and broken.


def unweighted(state: CalibrationState, trial: Trial, off: bool | None, allowed: Any) -> CalibrationState:
    """An audit stands for itself alone, not for the steps that were not audited."""
    return RIGHT(state, trial, off, dataclasses.replace(allowed, audit_rate=1.0))


def uncapped(state: CalibrationState, trial: Trial, off: bool | None, allowed: Any) -> CalibrationState:
    after = RIGHT(state, trial, off, allowed)
    if after.permissiveness < 1.0:
        return after
    return dataclasses.replace(after, permissiveness=state.permissiveness + calibration.STEP * RATE * RISK)


def unrevoked(state: CalibrationState, trial: Trial, off: bool | None, allowed: Any) -> CalibrationState:
    return RIGHT(dataclasses.replace(state, alarm=np.full(len(LEVELS), -1e9)), trial, off, allowed)


def winding(state: CalibrationState, trial: Trial, off: bool | None, allowed: Any) -> CalibrationState:
    return RIGHT(state, dataclasses.replace(trial, counted=True), off, allowed)


def mean_loss(rule: Rule, count: int = 5000) -> float:
    """From λ = 0, in a world that gets three times as hard half-way."""
    run = steps(ONLINE, stream(count, 1, lambda index: 3.0 if index > count // 2 else 1.0), after=rule)
    return float(np.mean([trial.would_reuse and off for _, trial, off in run]))


def loss_after_a_quiet_time(rule: Rule) -> float:
    """Nothing was off for long; then every second reuse is."""
    start = CalibrationState(0.9)
    quiet = [(0.5, False, False)] * 2000
    *_, (state, _, _) = steps(ONLINE, iter(quiet), state=start, after=rule)
    bad = [(0.95, index % 2 == 0, False) for index in range(300)]
    run = steps(ONLINE, iter(bad), state=state, after=rule)
    return float(np.mean([trial.would_reuse and off for _, trial, off in run]))


def risk_still_claimed(rule: Rule) -> float:
    """Risk of what is certified long after the world became harder."""
    sure = CalibrationState(0.6)
    run = steps(ONLINE, stream(9000, 2, lambda index: 6.0 if index > 3000 else 1.0), state=sure, after=rule)
    claims = [state.certified_level for state, _, _ in run]
    assert claims[3000] > 0.4
    return risk_of(claims[-1], 6.0)


def level_after_idling(rule: Rule) -> float:
    """Minutes in which the robot stands still."""
    *_, (state, _, _) = steps(ONLINE, iter([(0.1, False, True)] * 1500), state=CalibrationState(0.3), after=rule)
    return state.permissiveness


PROPERTIES = [
    (mean_loss, unweighted, RISK + 0.02),
    (loss_after_a_quiet_time, uncapped, 0.15),
    (risk_still_claimed, unrevoked, 2 * RISK),
    (level_after_idling, winding, 0.3),
]


@pytest.mark.parametrize(("figure", "broken", "most"), PROPERTIES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_rule_holds_and_is_needed(figure: Callable[[Rule], float], broken: Rule, most: float) -> None:
    assert figure(RIGHT) <= most
    assert figure(broken) > most


def test_no_unsafe_level_is_certified_in_a_world_that_stays_as_it_is() -> None:
    """Ten short runs: at 95 % confidence three unsafe ones or more would be rarer than one in eighty."""
    unsafe = 0
    for seed in range(10):
        claims = [state.certified_level for state, _, _ in steps(ONLINE, stream(1500, seed, lambda _: 1.0))]
        unsafe += risk_of(max(claims), 1.0) > RISK
    assert unsafe < 3


@given(
    worlds=st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=300),
    risk=st.floats(0.001, 0.5),
    rate=st.floats(0.01, 1.0),
)
@profile(max_examples=40, deadline=None)
def test_whatever_the_world_does_the_weighted_loss_is_bounded(
    worlds: list[tuple[float, bool, bool]], risk: float, rate: float
) -> None:
    """The telescoped sum: what the proof rests on, exactly, on each path."""
    settings, total, counted = online(rate, risk), 0.0, 0
    for state, trial, off in steps(settings, iter(worlds)):
        total += (trial.reason is Reason.AUDIT and off) / rate
        counted += trial.counted
        assert -calibration.STEP <= state.permissiveness <= 1.0
        assert total <= counted * risk + 1.0 / rate + 1e-6
        assert 0 <= state.certified <= len(LEVELS)
        assert np.isfinite(state.packed()).all()


@given(level=st.floats(0.001, 1), angle=st.floats(0, 50), overlap=st.floats(-1, 1), reused=st.integers(0, 5))
@profile(max_examples=200, deadline=None)
def test_the_need_is_where_the_thresholds_begin_to_allow_reuse(
    level: float, angle: float, overlap: float, reused: int
) -> None:
    allowed, gate = ONLINE.calibration, GateSettings()
    comparison = FreshComparison(angle, 1.0, overlap)
    least = need(comparison, reused, ONLINE)
    at = thresholds(level - 0.3 * reused, gate, allowed)
    inside = angle <= at.max_angle_deg * (1 + 1e-9) and overlap >= at.delta - 1e-9 and level > 0.3 * reused
    assert inside or least > level - 1e-9
    if least <= level - 1e-9:
        assert inside


@given(level=st.floats(0.001, 1), angle=st.floats(0, 50), own=st.floats(0.1, 60))
@profile(max_examples=100, deadline=None)
def test_without_token_sets_the_need_is_by_the_angle_alone(level: float, angle: float, own: float) -> None:
    allowed, gate = ONLINE.calibration, GateSettings(tokenless_angle_deg=own)
    least = need(FreshComparison(angle, incomparable=Reason.NO_TOKEN_SETS), 0, ONLINE)
    most_deg = thresholds(level, gate, allowed).max_angle_deg
    assert least <= level + 1e-9 if angle <= most_deg else least >= level - 1e-9
    assert thresholds(level, gate, allowed).tokenless_angle_deg == own  # the most that the user allows there


@pytest.mark.parametrize(("mode", "least"), [("guarded", 0.0), ("paper", 0.5625)])
def test_where_no_guard_compares_small_actions_their_angle_counts(mode: str, least: float) -> None:
    settings = ONLINE.with_values({"gate.mode": mode})
    assert need(FreshComparison(30.0, 1.0, 1.0, either_small=True), 0, settings) == pytest.approx(least)


def test_a_more_permissive_level_reuses_wherever_a_stricter_one_does() -> None:
    levels = [thresholds(level, GateSettings(), ONLINE.calibration) for level in (0.0, *LEVELS)]
    for strict, loose in itertools.pairwise(levels):
        assert loose.delta < strict.delta
        assert loose.max_angle_deg > strict.max_angle_deg
        assert loose.max_reuse >= strict.max_reuse
    assert levels[0].max_reuse == 0
    assert levels[-1] == most_permissive(GateSettings(), ONLINE.calibration)


def test_steps_that_no_level_reuses_certify_none_that_is_too_risky() -> None:
    """Half of the steps are beyond 0.5, and 8 % of those below are off: a risk of twice ε at 0.5, of ε at 0.25."""
    settings, rng = online(0.1, 0.02), np.random.default_rng(0)
    state = calibration.entering(CalibrationState(0.5), "go", settings)
    for asked in rng.random(4000):
        reused, off = asked <= 0.5, bool(asked <= 0.5 and rng.random() < 0.08)
        audited = reused and rng.random() < 0.1
        reason = Reason.AUDIT if audited else Reason.REUSE if reused else Reason.OVERLAP
        seen = off if audited or not reused else None
        state = calibration.after_step(state, Trial(asked, reason, counted=True), seen, settings.calibration)
        state = dataclasses.replace(state, permissiveness=0.5)
    assert state.certified_level < 0.3


def test_coins_are_fair_and_no_frame_moves_them() -> None:
    tosses = np.array([coin(number) for number in range(20_000)])
    assert abs((tosses < 0.1).mean() - 0.1) < 0.007
    assert abs(np.corrcoef(tosses[1:], tosses[:-1])[0, 1]) < 0.02
    assert ((tosses >= 0) & (tosses < 1)).all()


def test_a_state_survives_its_message_and_a_foreign_one_is_refused() -> None:
    *_, (state, _, _) = steps(ONLINE, stream(500, 3, lambda _: 1.0))
    again = CalibrationState.unpacked(state.packed().tolist(), state.claim)
    np.testing.assert_array_equal(again.packed(), state.packed())
    assert (again.coins, again.claim, again.off_per_step) == (state.coins, state.claim, state.off_per_step)
    for wrong in ([0.0], [math.nan, *state.packed()[1:]]):
        with pytest.raises(ValueError, match="not a state"):
            CalibrationState.unpacked(wrong, "")


def test_memory_is_constant() -> None:
    sizes = {len(pickle.dumps(vars(state))) for state, _, _ in steps(ONLINE, stream(3000, 4, lambda _: 1.0))}
    assert max(sizes) - min(sizes) < 64  # digits of its counts


def test_what_one_level_has_lost_is_not_forgiven_when_another_is_revoked() -> None:
    wealth, alarm = np.zeros(len(LEVELS)), np.zeros(len(LEVELS))
    wealth[5], alarm[2] = -4.0, 9.0
    state = CalibrationState(0.5, certified=4, wealth=wealth, alarm=alarm)
    after = calibration.after_step(state, Trial(0.9, Reason.ANGLE, counted=True), False, ONLINE.calibration)
    assert after.certified == 2
    assert after.wealth[3] < 0.1 and after.wealth[5] < -3.9


@pytest.mark.parametrize(
    ("before", "after", "off"),
    [
        ((0.5, 0.0, 0.0, 1.0), (0.65, 0.0, 0.0, 1.0), False),
        ((0.5, 0.0, 0.0, 1.0), (0.75, 0.0, 0.0, 1.0), True),
        ((0.5, 0.0, 0.0, 1.0), (0.5, 0.0, 0.0, -1.0), True),
        ((0.5, 0.0, 0.0, 0.006), (0.5, 0.0, 0.0, -0.006), False),  # a gripper without effort: within gripper_still
        ((0.5, 0.0, 0.0, 0.05), (0.5, 0.0, 0.0, -0.05), True),  # it changes sides
    ],
)
def test_a_reuse_is_off_where_the_model_says_something_else(
    before: tuple[float, ...], after: tuple[float, ...], off: bool
) -> None:
    seen = GateInput("go", 0.0, np.zeros((1, 1, 1, 3), np.float32))

    def fresh(action: tuple[float, ...]) -> FreshResult:
        return FreshResult(seen, np.array([action[:3]]), np.array([action[3:]]), None, 8, PruningSettings())

    trial = Trial(0.1, Reason.AUDIT, counted=True, candidate=fresh(before))
    assert calibration.is_off(trial, fresh(after), ONLINE) is off


def test_of_a_chunk_the_row_in_force_is_compared() -> None:
    seen = GateInput("go", 0.0, np.zeros((1, 1, 1, 3), np.float32))
    old = FreshResult(seen, np.array([[0.1], [0.2], [0.9]]), np.ones((3, 0)), None, 8, PruningSettings())
    new = FreshResult(seen, np.array([[0.9], [0.0], [0.0]]), np.ones((3, 0)), None, 8, PruningSettings())
    for row, off in ((0, True), (1, True), (2, False)):
        assert calibration.is_off(Trial(0.1, Reason.AUDIT, True, old, row), new, ONLINE) is off


# In the control step.


def run(stepper: Stepper, count: int, settings: Settings, start_s: float = 1.0) -> Iterator[Any]:
    for step in range(count):
        yield stepper.step(make_observation(start_s + 0.1 * step), settings)


def test_from_a_cold_start_it_learns_then_reuses_and_audits() -> None:
    policy = ScriptedPolicy()
    stepper = Stepper(policy, SPEC)
    results = list(run(stepper, 400, online(0.2, 0.3)))
    reasons = [result.decision.reason for result in results]
    assert reasons[:3] == [Reason.START, Reason.TOO_FEW_FRESH, Reason.LEARNING]
    assert {Reason.REUSE, Reason.AUDIT, Reason.MAX_REUSE} <= set(reasons)
    audited = [result for result in results if result.decision.reason is Reason.AUDIT]
    assert all(result.fresh and result.off is False and result.decision.reused_in_a_row == 0 for result in audited)
    share = len(audited) / sum(reason in (Reason.AUDIT, Reason.REUSE) for reason in reasons)
    assert 0.1 < share < 0.3
    assert policy.calls == sum(result.fresh for result in results)
    after_audit = results[reasons.index(Reason.AUDIT) + 1]
    assert after_audit.decision.age_s <= 0.1 + 1e-9  # the audit is what a reuse repeats now


def test_a_run_repeats_itself_and_an_undone_step_leaves_nothing() -> None:
    settings = online(0.2, 0.3)
    one, other = Stepper(ScriptedPolicy(), SPEC), Stepper(ScriptedPolicy(), SPEC)
    for left, right in zip(run(one, 200, settings), run(other, 200, settings), strict=True):
        before = other.state
        other.step(make_observation(1000.0), settings)
        other.state = before
        assert left.decision.reason is right.decision.reason
    np.testing.assert_array_equal(one.state.calibration.packed(), other.state.calibration.packed())


def test_a_new_instruction_begins_the_claim_anew_and_keeps_the_level() -> None:
    settings, stepper = online(0.2, 0.3), Stepper(ScriptedPolicy(), SPEC)
    list(run(stepper, 200, settings))
    before = stepper.state.calibration
    assert before.certified > 0
    stepper.reset()
    assert stepper.state.calibration is before
    stepper.step(make_observation(100.0, "close the drawer"), settings)
    after = stepper.state.calibration
    assert (after.permissiveness, after.coins) == (before.permissiveness, before.coins)
    assert (after.certified, after.steps, after.audits) == (0, 0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"control.dry_run": True},
        {"control.speed_scale": 0.0},
        {"gate.mode": "off"},
        {"limits.max_step": (0.0, 0.0, 0.0, 1.0)},
        {"limits.lower": (0.0, 0.0, 0.0, -1.0), "limits.upper": (0.0, 0.0, 0.0, 1.0)},
    ],
)
def test_a_robot_that_does_not_move_teaches_nothing(values: dict[str, Any]) -> None:
    stepper = Stepper(ScriptedPolicy(), SPEC)
    settings = online(0.2, 0.3).with_values({"calibration.learning": 0.2})
    list(run(stepper, 50, settings.with_values(values)))
    assert stepper.state.calibration.permissiveness == 0.0
    assert not stepper.state.calibration.learnt.any()
    list(run(stepper, 50, settings))
    assert stepper.state.calibration.learnt.any()


def absolute(*targets: Any) -> Stepper:
    """Of a policy that answers with targets, one after the other."""
    kinds = (ActionKind.ABSOLUTE,) * 3 + (ActionKind.GRIPPER,)
    return Stepper(ScriptedPolicy(actions=list(targets)), ActionSpec(names=SPEC.names, kinds=kinds, dt_s=0.1))


@pytest.mark.parametrize("target", [(0.5, 0.2, 0.1, 1.0), [(0.5, 0.2, 0.1, 1.0)] * 8], ids=["one", "chunk"])
def test_a_target_that_stays_where_it_is_teaches_nothing_however_large(target: Any) -> None:
    values = {"action.kinds": ["absolute"] * 3 + ["gripper"], "gate.replan_after": 1}
    stepper = absolute(target)
    list(run(stepper, 50, online(0.2, 0.3).with_values(values)))
    assert stepper.state.calibration.permissiveness == 0.0
    moving = absolute(*((0.5 + 0.02 * step, 0.2, 0.1, 1.0) for step in range(50)))
    wide = {"gate.still_difference": 0.01}
    list(run(moving, 50, online(0.2, 0.3).with_values(values | wide)))
    assert moving.state.calibration.permissiveness > 0.0


def test_along_a_chunk_calibration_counts_runs_left_out_as_the_gate_does() -> None:
    settings = online(0.01, 0.3).with_values({"gate.replan_after": 10, "gate.max_age_s": 60.0})
    longest = []
    for level in (0.3, 0.9999):
        stepper = Stepper(ScriptedPolicy(actions=[[(0.5, 0.1, 0.0, 1.0)] * 50]), SPEC)
        stepper.state = StepperState(calibration=CalibrationState(level))
        longest.append(max(result.decision.reused_in_a_row for result in run(stepper, 300, settings)))
    assert longest == [20, 40]


def test_other_guards_begin_the_claim_anew_and_what_calibration_moves_does_not() -> None:
    settings = online(0.2, 0.3)
    begun = calibration.entering(CalibrationState(), "go", settings)
    certified = dataclasses.replace(begun, certified=8)
    for name, value, kept in (
        ("scene_patches", 0, 0),
        ("gripper_margin", 0.0, 0),
        ("delta", 0.9, 8),
        ("max_reuse", 1, 8),
    ):
        other = settings.with_values({f"gate.{name}": value})
        assert calibration.entering(certified, "go", other).certified == kept, name


def test_a_share_of_the_steps_is_no_more_than_all() -> None:
    idle = CalibrationState(0.5, coins=60, steps=19, chances=60, audits=1, off=1)
    assert idle.off_per_step == (1.0, pytest.approx(0.65, abs=0.01), 1.0)


def test_guards_are_never_relaxed_and_do_not_count() -> None:
    memory = GateMemory()
    trial, decision = calibration.try_reuse(
        memory, calibration.GateMeasurements(interrupted_by=Reason.RESET), CalibrationState(1.0), ONLINE, 0.1
    )
    assert (trial.need, trial.counted, decision.reason) == (NEVER, False, Reason.RESET)
    assert judge(memory, calibration.GateMeasurements(interrupted_by=Reason.RESET), ONLINE.gate) is Reason.RESET
    assert RIGHT(CalibrationState(1.0), trial, None, ONLINE.calibration).permissiveness == 1.0


def test_a_draft_is_checked_for_exact_tokens_while_reuse_is_judged_by_it() -> None:
    settings = online(0.2, 0.3).with_values({"decode.mode": "draft", "decode.accept_bins": 5})
    policy = ScriptedPolicy()
    list(run(Stepper(policy, SPEC), 20, settings))
    drafts = [request.draft for request in policy.requests if request.draft]
    assert drafts
    assert {draft.accept_bins for draft in drafts} == {0}


@pytest.mark.parametrize(("off", "audits"), [(0, 1), (3, 40), (40, 40)])
def test_the_interval_of_what_is_off_is_wilsons(off: int, audits: int) -> None:
    state = dataclasses.replace(CalibrationState(), off=off, audits=audits)
    expected = binomtest(off, audits).proportion_ci(0.95, method="wilson")
    assert state.off_per_reuse == pytest.approx((off / audits, *expected), abs=1e-6)
