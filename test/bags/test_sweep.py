"""The sweep decides as the node's control step does, whatever the recording and the thresholds."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.bags import sweep
from flashvla_ros.bags.features import Features, Gallery, collect
from flashvla_ros.bags.frames import Frame
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings, Settings
from flashvla_ros.core.types import Inference, Observation
from flashvla_ros.gate.calibration import CalibrationState, is_off

TOKENS = 16


def frame_policy(actions: dict[float, np.ndarray], kept: dict[float, np.ndarray]) -> ScriptedPolicy:
    """Says of each frame, known by its stamp, what a script says of it."""

    def answer(request: Request, _: Inference) -> Inference:
        action, tokens = actions[request.observation.stamp_s], kept[request.observation.stamp_s]
        return Inference(action * 0.01, action, np.zeros(4, dtype=np.int64), tokens, TOKENS)

    return ScriptedPolicy(answer=answer)


def random_run(seed: int, count: int) -> tuple[list[Frame], ScriptedPolicy]:
    """A run with turns, gripper flips, scene changes, gaps, jumps of the clock, resets and new instructions."""
    random = np.random.default_rng(seed)
    heading, grip, level, stamp = 0.0, 1.0, 100.0, 1000.0
    instruction = "open the drawer"
    frames, actions, kept = [], {}, {}
    scores = random.normal(size=TOKENS)
    for index in range(count):
        heading += random.normal(0.0, 0.15)
        scores = scores + random.normal(0.0, 0.2, TOKENS)
        event = random.random()
        stamp += 2.0 if event < 0.03 else -5.0 if event < 0.05 else 0.1
        grip = -grip if 0.05 < event < 0.1 else grip
        level = random.uniform(0, 255) if 0.1 < event < 0.13 else level
        instruction = instruction[::-1] if 0.13 < event < 0.16 else instruction
        reset = Reason.RESET if 0.16 < event < 0.19 else None
        size = 0.001 if 0.19 < event < 0.3 else 0.5
        while stamp in actions:
            stamp += 0.001
        motion = size * np.array([np.cos(heading), np.sin(heading), 0.1])
        actions[stamp] = np.array([[*motion, grip]])
        kept[stamp] = np.sort(np.argsort(scores)[:10])
        image = np.full((32, 32, 3), np.clip(level + random.normal(0, 2), 0, 255), dtype=np.uint8)
        frames.append(Frame(index, Observation({"image": image}, instruction, stamp), index, None, reset))
    return frames, frame_policy(actions, kept)


def every_error(features: Features, sources: np.ndarray) -> np.ndarray:
    return sweep.errors(features, sources, np.flatnonzero(sources != np.arange(len(sources))))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["guarded", "paper"]),
    fresh_between=st.integers(1, 3),
    margin=st.sampled_from([0.0, 0.2]),
)
def test_every_setting_decides_as_the_control_step_would(seed, mode, fresh_between, margin):
    frames, policy = random_run(seed, 40)
    base = GateSettings(mode=mode, fresh_between=fresh_between, gripper_margin=margin)
    gates = sweep.grid(base, [0.0, 0.6], [5.0, 30.0], [1, 3])
    features = collect(frames, policy, Settings(), SPEC, lambda: None)
    sources = sweep.sweep(features, gates)
    for number, gate in enumerate(gates):
        stepper = Stepper(policy, SPEC)
        expected, reasons = [], []
        for frame in frames:
            if frame.reset:
                stepper.reset(frame.reset)
            result = stepper.step(frame.observation, dataclasses.replace(Settings(), gate=gate))
            reasons.append(result.decision.reason)
            expected.append(expected[-1] if result.decision.reuse else frame.index)
        assert sources[number].tolist() == expected
        assert [decision.reason for decision in sweep.timeline(features, gate)] == reasons


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    risk=st.sampled_from([0.1, 0.5]),
    rate=st.sampled_from([0.3, 1.0]),
    learning=st.sampled_from([0, 0.2]),
)
def test_calibration_moves_as_in_the_control_step_over_several_recordings(seed, risk, rate, learning):
    values = {"risk": risk, "audit_rate": rate, "learning": learning}
    chosen = Settings().with_values(
        {"gate.calibration": "online"} | {f"calibration.{name}": value for name, value in values.items()}
    )
    done, kept = sweep.Calibrated(risk), CalibrationState()
    reasons, off = [], 0
    for part in range(2):
        frames, policy = random_run(seed + part, 80)
        features = collect(frames, policy, chosen, SPEC, lambda: None)
        done = sweep.calibrate(done, features, chosen)
        stepper = Stepper(policy, SPEC)
        stepper.state = dataclasses.replace(stepper.state, calibration=kept)
        for frame in frames:
            if frame.reset:
                stepper.reset(frame.reset)
            result = stepper.step(frame.observation, chosen)
            reasons.append(result.decision.reason)
            if result.decision.reuse:
                off += is_off(result.trial, features.fresh(frame.index), chosen)
        kept = stepper.state.calibration
    assert (done.steps, done.off) == (len(reasons), off)
    assert (done.reused, done.audited) == (reasons.count(Reason.REUSE), reasons.count(Reason.AUDIT))
    assert done.state.packed().tolist() == kept.packed().tolist()


def test_the_random_runs_are_reused_by_calibration_too():
    chosen = Settings().with_values(
        {"gate.calibration": "online", "calibration.risk": 0.5, "calibration.audit_rate": 0.5}
    )
    done = sweep.Calibrated(0.5)
    for seed in range(6):
        frames, policy = random_run(seed, 80)
        done = sweep.calibrate(done, collect(frames, policy, chosen, SPEC, lambda: None), chosen)
    assert min(done.reused, done.audited, done.off) > 0


def test_the_random_runs_reuse_and_meet_every_guard():
    met = set()
    for seed in range(6):
        frames, policy = random_run(seed, 60)
        features = collect(frames, policy, Settings(), SPEC, lambda: None)
        for gate in sweep.grid(GateSettings(), [0.0, 0.8], [5.0, 30.0], [1, 3]):
            met |= {decision.reason for decision in sweep.timeline(features, gate)}
    expected = {
        "reuse",
        "reset",
        "new_instruction",
        "clock_jump",
        "stale_gap",
        "gripper",
        "angle",
        "overlap",
        "max_reuse",
    }
    assert met >= expected | {"scene_changed", "start", "too_few_fresh"}


def run_of(actions):
    """Features of frames 0.1 s apart with these actions, one time step each, that the gate has no objection to."""
    stamps = [0.1 * index for index in range(1, len(actions) + 1)]
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    frames = [Frame(i, Observation({"image": image}, "go", stamp), i) for i, stamp in enumerate(stamps)]
    policy = ScriptedPolicy(actions=actions, kept=[tuple(range(40))])
    return collect(frames, policy, Settings(), SPEC, lambda: None)


def test_the_error_of_a_reused_action_is_its_distance_to_the_dense_action_of_that_frame():
    features = run_of([(0.5, 0.0, 0.0, 1.0), (0.5, 0.1, 0.0, 1.0), (0.5, 0.4, 0.2, 1.0), (0.9, 0.0, 0.0, 1.0)])
    gate = GateSettings(max_angle_deg=90.0, delta=0.0, max_reuse=2)
    (sources,) = sweep.sweep(features, [gate])
    assert sources.tolist() == [0, 1, 1, 1]
    assert every_error(features, sources) == pytest.approx(np.array([[0, 0.3, 0.2, 0], [0.4, 0.1, 0, 0]]))
    (row,) = sweep.evaluate([(features, sources[None])], [gate])
    assert (row.steps, row.reused) == (4, 2)
    assert row.error == pytest.approx((0.35, 0.395, 0.4))
    assert row.by_dimension[2] == pytest.approx([0.4, 0.3, 0.2, 0.0])


def test_an_older_chunk_is_compared_where_the_robot_is_in_it():
    chunk = [[0.1, 0, 0, 1], [0.2, 0, 0, 1], [0.3, 0, 0, 1]]
    features = run_of([(0.1, 0.0, 0.0, 1.0)] * 4)
    features = dataclasses.replace(features, actions=np.array([chunk] * 4))
    sources = np.array([0, 1, 1, 1], dtype=np.int32)
    assert every_error(features, sources)[:, 0] == pytest.approx([0.1, 0.2])


def row(delta, angle, cap, reused, error):
    gate = GateSettings(delta=delta, max_angle_deg=angle, max_reuse=cap)
    return sweep.Row(gate, 100, reused, (0.0, error, error), np.zeros((3, 4)))


def test_the_most_aggressive_setting_within_the_error_is_recommended():
    rows = [row(0.9, 5, 1, 10, 0.01), row(0.5, 5, 1, 40, 0.09), row(0.0, 40, 5, 80, 0.3)]
    assert sweep.recommend(rows, 0.1) is rows[1]
    assert sweep.recommend(rows, 0.5) is rows[2]
    assert sweep.recommend(rows, 0.001) is None
    assert sweep.recommend([row(0.9, 5, 1, 0, float("nan"))], 1.0) is None


def test_the_strictest_of_equally_good_settings_is_recommended():
    rows = [row(0.3, 10, 2, 40, 0.05), row(0.5, 10, 3, 40, 0.05), row(0.5, 5, 3, 40, 0.05), row(0.5, 5, 2, 40, 0.05)]
    assert sweep.recommend(rows, 0.1) is rows[3]


def test_the_frontier_holds_what_no_other_row_beats():
    rows = [row(0.9, 5, 1, 10, 0.01), row(0.5, 5, 1, 40, 0.09), row(0.4, 5, 1, 30, 0.2), row(0.0, 40, 5, 80, 0.3)]
    assert sweep.frontier(rows) == [rows[3], rows[1], rows[0]]


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_the_gallery_keeps_the_costliest_frame_and_is_bounded(costs):
    gallery = Gallery(size=3, apart=4)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for index, cost in enumerate(costs):
        gallery.offer(cost, index, image)
    indices = sorted(frame.index for frame in gallery.frames)
    assert len(indices) <= 3
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(indices))
    if max(costs) > 0:
        assert gallery.frames[0].cost == max(costs)
