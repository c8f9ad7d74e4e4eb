"""The gate's decision, condition by condition: each forbids reuse alone, with its own reason."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings, PruningSettings
from flashvla_ros.gate.decision import GateDecision, angle_between, decide, overlap_of
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.scene import GRID

KEPT = tuple(range(40))


def shown(stamp_s: float, instruction: str = "open the drawer", frame: np.ndarray | None = None) -> GateInput:
    return GateInput(instruction, stamp_s, np.full((1, GRID, GRID, 3), 100, np.float32) if frame is None else frame)


def fresh(
    at: GateInput,
    motion: tuple[float, ...] = (0.5, 0.0, 0.0),
    gripper: float = 1.0,
    kept: tuple[int, ...] | None = KEPT,
    pruning: PruningSettings | None = None,
) -> FreshResult:
    tokens = None if kept is None else np.array(kept, dtype=np.int64)
    return FreshResult(
        at, np.atleast_2d(motion), np.array([[gripper]]), tokens, 64, pruning or PruningSettings(keep_ratio=0.625)
    )


def remembering(*results: FreshResult, gate: GateSettings | None = None) -> GateMemory:
    memory = GateMemory()
    for result in results:
        memory = memory.after_fresh(result, gate or GateSettings())
    return memory


def steady(**last: object) -> GateMemory:
    """A memory of two fresh results 0.1 s apart that agree in everything but what `last` replaces."""
    return remembering(fresh(shown(1.0)), fresh(shown(1.1), **last))  # type: ignore[arg-type]


def test_agreeing_results_are_reused_and_everything_is_reported() -> None:
    decision = decide(steady(), shown(1.2), GateSettings())
    assert decision.reason is Reason.REUSE
    assert decision.reuse
    assert (decision.angle_deg, decision.overlap, decision.corrected_overlap) == (0.0, 1.0, 1.0)
    assert (decision.scene_changed, decision.reused_in_a_row) == (0, 1)
    assert decision.age_s == pytest.approx(0.1)


def changed_frame(patches: int) -> np.ndarray:
    frame = np.full((1, GRID, GRID, 3), 100, np.float32)
    frame[0, 0, :patches] = 200
    return frame


PRUNED_OTHERWISE = PruningSettings(keep_ratio=0.625, method="norm")
HALF = tuple(range(20, 60))  # shares 20 of 40 with KEPT: φ = 0.5, φ' = (0.5 - 0.625) / 0.375 = -1/3

GUARDED = [
    (Reason.NEW_INSTRUCTION, steady(), shown(1.2, "close the drawer"), {}),
    (Reason.CLOCK_JUMP, steady(), shown(1.1), {}),
    (Reason.CLOCK_JUMP, steady(), shown(0.2), {}),
    (Reason.CLOCK_JUMP, steady(), shown(math.nan), {}),
    (Reason.STALE_GAP, steady(), shown(2.2), {"max_age_s": 60.0}),
    (Reason.TOO_FEW_FRESH, remembering(fresh(shown(1.1))), shown(1.2), {}),
    (Reason.MAX_REUSE, steady().after_step_without_model(Reason.REUSE, shown(1.2)), shown(1.3), {"max_reuse": 1}),
    (Reason.MAX_REUSE, steady(), shown(1.2), {"max_reuse": 0}),
    (
        Reason.FRESH_BETWEEN,
        steady().after_step_without_model(Reason.REUSE, shown(1.2)).after_fresh(fresh(shown(1.3)), GateSettings()),
        shown(1.4),
        {"fresh_between": 2},
    ),
    (Reason.MAX_AGE, steady(), shown(1.2), {"max_age_s": 0.05}),
    (Reason.GRIPPER, steady(gripper=0.1), shown(1.2), {}),
    (Reason.GRIPPER, steady(gripper=-1.0), shown(1.2), {}),
    (Reason.GRIPPER, steady(gripper=0.9), shown(1.2), {"gripper_middle": 0.95, "gripper_margin": 0.0}),
    (Reason.SCENE_CHANGED, steady(), shown(1.2, frame=changed_frame(2)), {}),
    (Reason.SCENE_CHANGED, steady(), shown(1.2, frame=np.full((2, GRID, GRID, 3), 100, np.float32)), {}),
    (Reason.STILL, steady(motion=(0.01, 0.0, 0.0)), shown(1.2), {}),
    (Reason.ANGLE, steady(motion=(0.5, 0.1, 0.0)), shown(1.2), {}),
    (Reason.ANGLE, steady(), shown(1.2), {"max_angle_deg": 0.0}),
    (Reason.NO_TOKEN_SETS, steady(kept=None), shown(1.2), {"delta": 0.0}),
    (Reason.PRUNING_CHANGED, steady(kept=KEPT[:32]), shown(1.2), {"delta": 0.0}),
    (Reason.PRUNING_CHANGED, steady(pruning=PRUNED_OTHERWISE), shown(1.2), {"delta": 0.0}),
    (Reason.OVERLAP, steady(kept=HALF), shown(1.2), {"delta": 0.0}),
]


@pytest.mark.parametrize(("reason", "memory", "seen", "values"), GUARDED, ids=lambda value: str(value)[:16])
def test_each_guard_forbids_reuse_with_its_own_reason(
    reason: Reason, memory: GateMemory, seen: GateInput, values: dict[str, float]
) -> None:
    decision = decide(memory, seen, dataclasses.replace(GateSettings(), **values))
    assert decision.reason is reason
    assert (decision.reuse, decision.age_s, decision.reused_in_a_row) == (False, 0.0, 0)


@pytest.mark.parametrize("mode", ["paper", "guarded"])
@pytest.mark.parametrize("angle, reason", [(0.0, Reason.NO_TOKEN_SETS), (5.0, Reason.ANGLE), (15.0, Reason.REUSE)])
def test_without_token_sets_the_angle_has_a_threshold_of_its_own(mode: str, angle: float, reason: Reason) -> None:
    """The actions are 11.3° apart: within gate.max_angle_deg, which counts where sets support it."""
    settings = GateSettings(mode=mode, max_angle_deg=12.0, tokenless_angle_deg=angle)
    memory = steady(motion=(0.5, 0.1, 0.0), kept=None)
    assert decide(memory, shown(1.2), settings).reason is reason
    assert decide(steady(motion=(0.5, 0.1, 0.0)), shown(1.2), settings).reason is Reason.REUSE
    stricter = dataclasses.replace(settings, max_angle_deg=10.0)  # no looser than where sets support it
    assert decide(memory, shown(1.2), stricter).reason is Reason.ANGLE


def test_without_token_sets_every_guard_holds() -> None:
    settings = GateSettings(tokenless_angle_deg=180.0)
    for reason, memory, seen, values in GUARDED:
        if reason not in {Reason.NO_TOKEN_SETS, Reason.PRUNING_CHANGED, Reason.OVERLAP, Reason.ANGLE}:
            tokenless = dataclasses.replace(memory, last=dataclasses.replace(memory.last, kept=None))
            assert decide(tokenless, seen, dataclasses.replace(settings, **values)).reason is reason


IN_PAPER_TOO = {
    Reason.NEW_INSTRUCTION,
    Reason.CLOCK_JUMP,
    Reason.STALE_GAP,
    Reason.TOO_FEW_FRESH,
    Reason.MAX_REUSE,
    Reason.ANGLE,
    Reason.NO_TOKEN_SETS,
    Reason.PRUNING_CHANGED,
    Reason.OVERLAP,
}


@pytest.mark.parametrize(("reason", "memory", "seen", "values"), GUARDED, ids=lambda value: str(value)[:16])
def test_paper_mode_knows_angle_overlap_and_cap_alone(
    reason: Reason, memory: GateMemory, seen: GateInput, values: dict[str, float]
) -> None:
    decision = decide(memory, seen, dataclasses.replace(GateSettings(), mode="paper", **values))
    assert decision.reason is (reason if reason in IN_PAPER_TOO else Reason.REUSE)


@pytest.mark.parametrize("cause", [Reason.START, Reason.RESET, Reason.EMERGENCY_STOP, Reason.IMAGE_TIMEOUT])
def test_the_first_step_after_a_reset_names_its_cause(cause: Reason) -> None:
    for mode in ("paper", "guarded"):
        decision = decide(GateMemory(cause=cause), shown(5.0), GateSettings(mode=mode))
        assert decision.reason is cause
        assert math.isnan(decision.angle_deg)
        assert math.isnan(decision.scene_level)


def test_mode_off_never_reuses_but_still_measures() -> None:
    decision = decide(steady(), shown(1.2), GateSettings(mode="off"))
    assert decision.reason is Reason.MODE_OFF
    assert (decision.angle_deg, decision.corrected_overlap) == (0.0, 1.0)


def test_both_still_is_a_reason_to_go_on_and_noise_in_the_angle_is_ignored() -> None:
    memory = remembering(fresh(shown(1.0), (0.001, 0.0, 0.0)), fresh(shown(1.1), (0.0, -0.001, 0.0)))
    decision = decide(memory, shown(1.2), GateSettings())
    assert decision.angle_deg == pytest.approx(90.0)
    assert decision.reason is Reason.REUSE
    assert decide(memory, shown(1.2), GateSettings(mode="paper")).reason is Reason.ANGLE


def test_exactly_zero_actions_have_no_angle() -> None:
    memory = remembering(fresh(shown(1.0), (0.0, 0.0, 0.0)), fresh(shown(1.1), (0.0, 0.0, 0.0)))
    assert math.isnan(decide(memory, shown(1.2), GateSettings()).angle_deg)
    assert decide(memory, shown(1.2), GateSettings()).reason is Reason.REUSE
    assert decide(memory, shown(1.2), GateSettings(mode="paper")).reason is Reason.ANGLE


def test_gripper_middle_moves_the_flip_to_where_the_checkpoint_has_it() -> None:
    memory = remembering(fresh(shown(1.0), gripper=0.0), fresh(shown(1.1), gripper=0.05))  # closed, of 0 to 1
    assert decide(memory, shown(1.2), GateSettings()).reason is Reason.GRIPPER
    assert decide(memory, shown(1.2), GateSettings(gripper_middle=0.5)).reason is Reason.REUSE


@pytest.mark.parametrize(
    ("before", "last", "reason"),
    [
        (0.0, 0.0, Reason.REUSE),  # no effort at all, step after step
        (-0.008, 0.008, Reason.REUSE),  # a bin to either side of it
        (0.1, 0.12, Reason.REUSE),
        (0.1, 0.121, Reason.GRIPPER),  # under way, and near the middle
        (-0.3, 0.3, Reason.GRIPPER),
        (0.3, 0.5, Reason.REUSE),  # under way far from it
    ],
)
def test_a_gripper_at_rest_is_not_about_to_flip_wherever_it_is(before: float, last: float, reason: Reason) -> None:
    memory = remembering(fresh(shown(1.0), gripper=before), fresh(shown(1.1), gripper=last))
    assert decide(memory, shown(1.2), GateSettings()).reason is reason


def test_one_gripper_at_rest_does_not_hide_another_that_moves() -> None:
    results = [
        dataclasses.replace(fresh(shown(at)), gripper=np.array([[0.0, grip]])) for at, grip in ((1.0, 0.3), (1.1, 0.1))
    ]
    assert decide(remembering(*results), shown(1.2), GateSettings()).reason is Reason.GRIPPER


def test_a_gripper_that_flips_within_the_chunk_is_not_repeated() -> None:
    flips = np.array([[1.0], [-1.0]])
    results = [
        dataclasses.replace(fresh(shown(at)), motion=np.full((2, 3), 0.5), gripper=flips.copy()) for at in (1.0, 1.1)
    ]
    assert decide(remembering(*results), shown(1.2), GateSettings(replan_after=1)).reason is Reason.GRIPPER


def test_without_a_gripper_there_is_nothing_to_flip() -> None:
    results = [dataclasses.replace(fresh(shown(at)), gripper=np.empty((1, 0))) for at in (1.0, 1.1)]
    assert decide(remembering(*results), shown(1.2), GateSettings()).reason is Reason.REUSE


def test_the_scene_guard_counts_its_alarms_whichever_condition_decides() -> None:
    seen = shown(1.2, frame=changed_frame(3))
    off = decide(steady(), seen, GateSettings(mode="off"))
    assert off.scene_alarm
    assert off.scene_changed == 3
    assert not decide(steady(), seen, GateSettings(scene_patches=0)).scene_alarm
    assert decide(steady(), seen, GateSettings(scene_patches=0)).reuse
    assert decide(steady(), seen, GateSettings(scene_patches=4)).reuse


# The angle.


def test_angle_of_known_vectors() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert angle_between(x, y) == pytest.approx(90.0)
    assert angle_between(x, -3.0 * x) == pytest.approx(180.0)
    assert angle_between(x, 7.0 * x) == 0.0
    assert angle_between(x, np.array([[1.0, 1.0]])) == pytest.approx(45.0)


def test_angle_is_taken_over_the_whole_chunk() -> None:
    chunk = np.array([[1.0, 0.0], [1.0, 0.0]])
    turned = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert angle_between(chunk, turned) == pytest.approx(60.0)
    assert math.isnan(angle_between(chunk, chunk[:1]))


@given(st.floats(1e-9, 179.9), st.floats(0.01, 100.0))
@settings(deadline=None)
def test_angle_keeps_its_precision_and_ignores_length(degrees: float, scale: float) -> None:
    radians = math.radians(degrees)
    turned = scale * np.array([[math.cos(radians), math.sin(radians)]])
    assert angle_between(np.array([[1.0, 0.0]]), turned) == pytest.approx(degrees, rel=1e-6)


# The overlap.


def overlap(previous: tuple[int, ...], last: tuple[int, ...]) -> tuple[float, float]:
    at = shown(0.0)
    return overlap_of(fresh(at, kept=previous), fresh(at, kept=last))


def test_overlap_and_its_correction() -> None:
    assert overlap(KEPT, KEPT) == (1.0, 1.0)
    phi, corrected = overlap(KEPT, HALF)
    assert phi == 0.5
    assert corrected == pytest.approx(-1 / 3)
    assert overlap(tuple(range(64)), tuple(range(64))) == (1.0, 1.0)  # k = N: identical sets


def test_overlap_is_undefined_between_sets_of_another_size() -> None:
    assert all(math.isnan(value) for value in overlap(KEPT, KEPT[:20]))
    assert all(math.isnan(value) for value in overlap((), ()))
    other_resolution = dataclasses.replace(fresh(shown(0.0)), visual_tokens=256)
    assert math.isnan(overlap_of(fresh(shown(0.0)), other_resolution)[0])


def test_random_sets_have_a_corrected_overlap_of_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    for k in (8, 24, 40, 56):
        pairs = [[tuple(np.sort(rng.choice(64, k, replace=False))) for _ in range(2)] for _ in range(400)]
        corrected = [overlap(*pair)[1] for pair in pairs]
        assert abs(np.mean(corrected)) < 4 * np.std(corrected) / math.sqrt(len(corrected))


# What no sequence may break.

kept_sets = st.tuples(
    st.integers(0, 24), st.integers(0, 24)
).map(  # 40 tokens each, from equal to little in common
    lambda at: tuple(range(at[0], at[0] + 20)) + tuple(range(at[0] + 20 + at[1] % (25 - at[0]), 64))[:20]
)
motions = st.tuples(*[st.floats(-1, 1)] * 3)
gates = st.builds(
    GateSettings,
    mode=st.sampled_from(["off", "paper", "guarded"]),
    delta=st.floats(0, 1),
    max_angle_deg=st.floats(0, 180),
    max_reuse=st.integers(0, 5),
    fresh_between=st.integers(1, 4),
    max_age_s=st.floats(0, 2),
    gripper_margin=st.floats(0, 1),
    gripper_still=st.floats(0, 1),
)


def a_decision(first: tuple, second: tuple, grip: float, gate: GateSettings) -> GateDecision:
    memory = remembering(fresh(shown(1.0), first[0], kept=first[1]), fresh(shown(1.1), second[0], grip, second[1]))
    return decide(memory, shown(1.2), gate)


def test_a_motion_of_the_size_of_still_norm_moves() -> None:
    slow, fast = ((0.25, 0.0, 0.0), KEPT), ((1.0, 0.0, 0.0), KEPT)
    gate = GateSettings(mode="guarded", still_norm=0.25)
    assert a_decision(slow, fast, 1.0, gate).reason is not Reason.STILL
    assert a_decision(slow, fast, 1.0, dataclasses.replace(gate, still_norm=0.26)).reason is Reason.STILL


results = st.tuples(motions, kept_sets)


@given(results, results, st.floats(-1, 1), gates, st.floats(0, 1), st.floats(0, 180))
@settings(deadline=None)
def test_thresholds_act_in_one_direction(
    first: tuple, second: tuple, grip: float, gate: GateSettings, delta: float, angle: float
) -> None:
    decision = a_decision(first, second, grip, gate)
    stricter = dataclasses.replace(gate, delta=max(delta, gate.delta), max_angle_deg=min(angle, gate.max_angle_deg))
    if not decision.reuse:
        assert not a_decision(first, second, grip, stricter).reuse


@given(results, results, st.floats(-1, 1), gates)
@settings(deadline=None)
def test_guarded_reuses_a_moving_robot_only_where_paper_would(
    first: tuple, second: tuple, grip: float, gate: GateSettings
) -> None:
    guarded = a_decision(first, second, grip, dataclasses.replace(gate, mode="guarded", still_norm=0.0))
    paper = a_decision(first, second, grip, dataclasses.replace(gate, mode="paper"))
    assert paper.reuse or not guarded.reuse


@given(results, results, st.floats(-1, 1), gates)
@settings(deadline=None)
def test_a_decision_is_a_pure_function(first: tuple, second: tuple, grip: float, gate: GateSettings) -> None:
    memory = remembering(fresh(shown(1.0), first[0], kept=first[1]), fresh(shown(1.1), second[0], grip, second[1]))
    seen = shown(1.2)
    arrays = [memory.last.motion, memory.previous.motion, memory.last.kept, seen.frame, memory.motion.frame]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    assert repr(decide(memory, seen, gate)) == repr(decide(memory, seen, gate))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
