"""The next chunk is asked for while the present one runs, and is never taken for another moment's."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.prefetch import Model
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import RemoteError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import Inference

ROWS = 8


def by_stamp(request: Request, scripted: Inference) -> Inference:
    """Row n of a chunk says the instant it is for, in tenths of a second."""
    first = request.observation.stamp_s * 10
    normalized = np.array([[first + row, 0.0, 0.1, 1.0] for row in range(ROWS)])
    return Inference(normalized, normalized, scripted.tokens, None, 64)


def values(ahead: int = 3, **others: object) -> Settings:
    named = {"control.prefetch": ahead, "gate.mode": "off", "gate.max_age_s": 10.0, "gate.stale_gap_s": 10.0}
    return Settings().with_values(named | {name.replace("__", "."): value for name, value in others.items()})


def run(stepper: Stepper, steps: range, setting: Settings, answered: Callable[[int], bool | None]) -> list[StepResult]:
    return [stepper.step(make_observation(n / 10), setting, answered=answered(n)) for n in steps]


def test_a_chunk_is_followed_while_the_next_one_is_made_and_begins_where_it_stands() -> None:
    policy = ScriptedPolicy(answer=by_stamp)
    results = run(Stepper(policy, SPEC), range(1, 14), values(), lambda n: n == 8)
    assert [str(result.decision.reason) for result in results] == [
        *("mode_off", "open_loop", "open_loop", "open_loop", "open_loop", "prefetch", "prefetch"),
        *("mode_off", "open_loop", "open_loop", "prefetch", "prefetch", "prefetch"),
    ]
    assert [request.observation.stamp_s for request in policy.requests] == [0.1, 0.6, 1.1]
    assert [result.command[0, 0] for result in results] == pytest.approx(list(range(1, 14)))  # each its own instant
    taken = results[7]
    assert taken.fresh
    assert taken.decision.age_s == pytest.approx(0.2)
    assert taken.chunk_row == 2


def test_a_run_of_the_model_hands_the_request_on_and_notes_how_long_the_answer_took() -> None:
    now_s = [5.0]

    def before(_call: int) -> None:
        now_s[0] += 0.25

    policy, request = ScriptedPolicy(before=before), Request(make_observation(), PruningSettings())
    result = Model(policy, SPEC, lambda: now_s[0], None).run(request)
    assert policy.requests == [request]
    assert result.elapsed_s == 0.25
    plain = dataclasses.asdict(ScriptedPolicy().infer(request))
    for name, value in dataclasses.asdict(result).items():
        if name != "elapsed_s":
            np.testing.assert_equal(value, plain[name], name)


def test_without_it_the_model_is_run_when_it_is_due() -> None:
    policy = ScriptedPolicy(answer=by_stamp)
    results = run(Stepper(policy, SPEC), range(1, 11), values(0), lambda _: None)
    assert [request.observation.stamp_s for request in policy.requests] == [0.1, 0.9]
    assert results[8].decision.age_s == 0.0


def test_a_chunk_at_its_end_waits_for_the_answer() -> None:
    stepper = Stepper(ScriptedPolicy(answer=by_stamp), SPEC)
    results = run(stepper, range(1, 10), values(), lambda _: False)
    assert results[-1].fresh
    assert results[-1].decision.age_s == pytest.approx(0.3)


def test_an_answer_that_has_ended_before_it_came_is_not_followed() -> None:
    policy = ScriptedPolicy(answer=by_stamp)
    stepper = Stepper(policy, SPEC)
    run(stepper, range(1, 7), values(), lambda _: False)
    result = stepper.step(make_observation(2.0), values(), answered=True)
    assert (result.decision.reason, result.decision.age_s) == ("chunk_end", 0.0)
    assert policy.requests[-1].observation.stamp_s == 2.0


def test_a_chunk_that_is_made_in_place_of_one_that_has_ended_begins_at_its_first_row() -> None:
    """The gate itself would have followed the last chunk, which is longer."""
    policy = ScriptedPolicy(answer=lambda request, made: cut(by_stamp(request, made), 2 if policy.requests[1:] else 8))
    stepper = Stepper(policy, SPEC)
    run(stepper, range(1, 7), values(), lambda _: False)
    result = stepper.step(make_observation(0.8), values(0), answered=True)
    assert (result.decision.reason, result.decision.age_s, result.decision.reused_in_a_row) == ("chunk_end", 0.0, 0)
    assert (result.chunk_row, result.command[0, 0]) == (0, pytest.approx(8.0))


def cut(inference: Inference, rows: int) -> Inference:
    return dataclasses.replace(inference, action=inference.action[:rows], normalized=inference.normalized[:rows])


@pytest.mark.parametrize(
    "seen, reason",
    [
        ({"instruction": "close the drawer"}, "new_instruction"),
        ({"level": 250}, "scene_changed"),
        ({"stamp_s": 0.55}, "clock_jump"),
    ],
)
def test_an_answer_to_another_world_is_not_taken(seen: dict, reason: str) -> None:
    setting = values(gate__mode="guarded")
    policy = ScriptedPolicy(answer=by_stamp)
    stepper = Stepper(policy, SPEC)
    run(stepper, range(1, 7), setting, lambda _: False)
    assert stepper.state.asked is not None
    result = stepper.step(make_observation(**{"stamp_s": 0.7, **seen}), setting, answered=True)
    assert (result.decision.reason, result.decision.age_s) == (reason, 0.0)
    assert policy.requests[-1].observation is result.observation
    assert stepper.state.asked is None


def test_a_reset_forgets_what_was_asked() -> None:
    stepper = Stepper(ScriptedPolicy(answer=by_stamp), SPEC)
    run(stepper, range(1, 7), values(), lambda _: False)
    stepper.reset()
    assert stepper.step(make_observation(0.7), values(), answered=True).decision.age_s == 0.0


def test_what_went_wrong_is_raised_where_the_answer_is_taken() -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise RemoteError("lost")

    stepper = Stepper(ScriptedPolicy(answer=by_stamp, before=fail), SPEC)
    run(stepper, range(1, 8), values(), lambda _: False)
    with pytest.raises(RemoteError, match="lost"):
        stepper.step(make_observation(0.8), values(), answered=True)


def test_the_gate_may_skip_a_run_that_is_not_asked_for_then() -> None:
    setting = values(
        2,
        gate__mode="guarded",
        gate__replan_after=4,
        gate__tokenless_angle_deg=90.0,
        gate__max_angle_deg=90.0,
        gate__max_reuse=1,
    )
    policy = ScriptedPolicy(answer=by_stamp)
    results = run(Stepper(policy, SPEC), range(1, 14), setting, lambda _: True)
    assert "reuse" in {str(result.decision.reason) for result in results}
    assert [result.command[0, 0] for result in results] == pytest.approx(list(range(1, 14)))
    assert len(policy.requests) == 3


def test_a_single_action_is_never_asked_for_ahead() -> None:
    policy = ScriptedPolicy()
    stepper = Stepper(policy, SPEC)
    results = [stepper.step(make_observation(n / 100), values()) for n in range(1, 5)]
    assert all(result.fresh for result in results)


def test_one_caller_at_a_time_runs_the_policy() -> None:
    inside, most, go = [], [], threading.Event()

    def enter(call: int) -> None:
        inside.append(call)
        most.append(len(inside))
        go.wait(10 if call == 1 else 0)
        inside.remove(call)

    stepper = Stepper(ScriptedPolicy(answer=by_stamp, before=enter), SPEC, executor=ThreadPoolExecutor(1))
    run(stepper, range(1, 7), values(), lambda _: None)
    assert not stepper.model.close(0.05)
    threading.Timer(0.1, go.set).start()
    stepper.reset()
    stepper.step(make_observation(0.7), values())
    assert stepper.model.close(10)
    assert max(most) == 1


def test_it_goes_without_calibration_alone() -> None:
    with pytest.raises(SettingsError, match=r"control\.prefetch is 3 and gate\.calibration online"):
        values(gate__calibration="online")


@settings(max_examples=60, deadline=None)
@given(
    ahead=st.integers(0, 10),
    replan=st.integers(0, 8),
    blend=st.sampled_from(["none", "temporal"]),
    answered=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_every_command_speaks_of_its_own_instant_whenever_answers_come(
    ahead: int, replan: int, blend: str, answered: list[bool]
) -> None:
    setting = values(ahead, gate__replan_after=replan, control__blend=blend)
    results = run(Stepper(ScriptedPolicy(answer=by_stamp), SPEC), range(1, 31), setting, lambda n: answered[n - 1])
    for number, result in enumerate(results, 1):
        assert result.command[0, 0] == pytest.approx(number)
        assert result.decision.age_s <= 2 * ROWS / 10
    told = [not result.decision.reuse and result.decision.age_s > 0.0 for result in results]
    again = run(Stepper(ScriptedPolicy(answer=by_stamp), SPEC), range(1, 31), setting, lambda n: told[n - 1])
    for one, other in zip(results, again, strict=True):  # as a replay does, bit for bit
        assert repr(one.reported) == repr(other.reported)
