"""The worker: one step for each newest observation, nothing of an earlier epoch, and stops that hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy, make_observation

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.worker import State, Stop, Worker
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec

LONG_S = 20.0  # a test that waits this long has failed


class Rig:
    """A worker on a scripted policy whose calls can be held up, and everything that it handed on."""

    def __init__(
        self,
        actions: Any = ((0.5, 0.0, 0.0, 1.0),),
        fail: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps: list[StepResult] = []
        self.stops: list[Stop] = []
        self.faults: list[Exception] = []
        self.go, self.entered = threading.Event(), threading.Semaphore(0)
        self.go.set()
        self._changed = threading.Condition()
        self._fail = fail
        self.policy = ScriptedPolicy(actions, before=self._before)
        self.settings = Settings()
        self.worker = Worker(
            Stepper(self.policy, SPEC),
            lambda: self.settings,
            on_step=lambda result: self._note(self.steps, result),
            on_stop=lambda stop: self._note(self.stops, stop),
            on_fault=lambda error: self._note(self.faults, error),
            clock=clock,
        )
        self.worker.start()
        self._stamp_s = 1.0

    def _before(self, call: int) -> None:
        self.entered.release()
        assert self.go.wait(LONG_S)
        if self._fail:
            self._fail(call)

    def change(self, settings: Settings) -> None:
        with self.worker.changing(settings):
            self.settings = settings

    def _note(self, log: list[Any], item: Any) -> None:
        with self._changed:
            log.append(item)
            self._changed.notify_all()

    def wait(self, log: list[Any], count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(log) >= count, LONG_S), f"{len(log)} of {count} came"

    def post(self, instruction: str = "open the drawer") -> None:
        self._stamp_s += 0.1
        self.worker.post(make_observation(self._stamp_s, instruction))

    def step(self, count: int = 1) -> None:
        """Post observations one by one, each after the step before it was handed on."""
        for _ in range(count):
            done = len(self.steps)
            self.post()
            self.wait(self.steps, done + 1)

    def hang(self) -> None:
        """Post an observation and wait until the model is in the middle of it."""
        while self.entered.acquire(blocking=False):
            pass
        self.go.clear()
        self.settings = Settings().with_values({"gate.mode": "off"})
        self.post()
        assert self.entered.acquire(timeout=LONG_S)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(*arguments: Any, **options: Any) -> Rig:
        rigs.append(Rig(*arguments, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.go.set()
        assert rig.worker.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


def test_every_step_is_handed_on_in_order(rig: Rig) -> None:
    assert rig.worker.state is State.WAITING
    rig.step(6)
    assert [result.step for result in rig.steps] == list(range(6))
    assert rig.worker.state is State.RUNNING
    assert rig.worker.running_since_s is None


def test_while_the_model_runs_only_the_newest_observation_waits(rig: Rig) -> None:
    rig.hang()
    for _ in range(5):
        rig.post()
    newest_s = rig._stamp_s
    rig.go.set()
    rig.wait(rig.steps, 2)
    assert rig.steps[1].observation.stamp_s == newest_s
    assert rig.worker.dropped == 4


def test_new_settings_take_effect_at_the_next_step(rig: Rig) -> None:
    rig.step(2)
    rig.settings = Settings().with_values({"gate.delta": 0.9, "gate.mode": "off"})
    rig.step(1)
    assert rig.steps[-1].decision.settings.delta == 0.9
    assert rig.steps[-1].decision.reason is Reason.MODE_OFF


def test_the_rate_is_kept_and_the_observation_taken_is_the_newest_when_its_turn_comes(
    make_rig: Callable[..., Rig],
) -> None:
    now_s = [100.0]
    rig = make_rig(clock=lambda: now_s[0])
    rig.settings = Settings().with_values({"control.rate_hz": 10.0})
    rig.step(1)
    for _ in range(3):
        rig.post()
    assert rig.worker.dropped == 2
    time.sleep(0.05)
    assert len(rig.steps) == 1
    now_s[0] += 0.11
    rig.wait(rig.steps, 2)
    assert rig.steps[1].observation.stamp_s == rig._stamp_s
    rig.post()
    rig.settings = Settings()  # a rate of 0 lifts the limit while the worker waits
    rig.wait(rig.steps, 3)


def test_a_stop_is_published_once_and_holds_until_the_next_step(rig: Rig) -> None:
    rig.step(3)
    for _ in range(5):
        rig.worker.stop(Reason.IMAGE_TIMEOUT, "no image")
    assert [stop.cause for stop in rig.stops] == [Reason.IMAGE_TIMEOUT]
    np.testing.assert_array_equal(rig.stops[0].command, [[0.0, 0.0, 0.0, 0.01]])
    assert rig.worker.state is State.STOPPED
    assert rig.worker.stopped_by is rig.stops[0]
    rig.step(1)
    assert rig.worker.state is State.RUNNING
    assert rig.worker.stopped_by is None
    assert rig.steps[-1].decision.reason is Reason.IMAGE_TIMEOUT


def test_an_emergency_stop_holds_until_a_reset(rig: Rig) -> None:
    rig.step(2)
    rig.worker.stop(Reason.EMERGENCY_STOP, "button")
    for _ in range(3):
        rig.post()
    rig.worker.stop(Reason.IMAGE_TIMEOUT, "no image")
    assert [stop.cause for stop in rig.stops] == [Reason.EMERGENCY_STOP]
    rig.worker.reset()
    assert rig.worker.state is State.WAITING
    rig.step(1)
    assert len(rig.steps) == 3
    assert rig.steps[-1].decision.reason is Reason.RESET
    assert rig.steps[-1].resets == 1


def test_an_emergency_stop_overrides_a_stop_that_would_end_by_itself(rig: Rig) -> None:
    rig.step(1)
    rig.worker.stop(Reason.IMAGE_TIMEOUT, "no image")
    rig.worker.stop(Reason.EMERGENCY_STOP, "button")
    rig.post()
    assert rig.worker.state is State.STOPPED
    assert len(rig.steps) == 1
    assert [stop.cause for stop in rig.stops] == [Reason.IMAGE_TIMEOUT, Reason.EMERGENCY_STOP]


@pytest.mark.parametrize("cause", [Reason.EMERGENCY_STOP, Reason.INFERENCE_TIMEOUT, None])
def test_what_the_model_computed_before_a_stop_or_reset_is_dropped(rig: Rig, cause: Reason | None) -> None:
    rig.step(1)
    rig.hang()
    if cause is None:
        rig.worker.reset()
    else:
        rig.worker.stop(cause, "while the model runs")
        assert rig.worker.running_since_s is None
    rig.worker.reset()
    rig.post()
    rig.go.set()
    rig.wait(rig.steps, 2)
    assert rig.worker.late == 1
    assert [result.resets for result in rig.steps] == [0, 1]
    assert rig.steps[1].step == 1  # the dropped step is as if never tried
    assert rig.steps[1].decision.reason is Reason.MODE_OFF


def test_an_observation_from_before_a_reset_is_not_answered_after_it(rig: Rig) -> None:
    rig.hang()
    rig.post("close the drawer")
    rig.worker.reset()
    rig.go.set()
    rig.step(1)
    assert [result.observation.instruction for result in rig.steps] == ["open the drawer"]


def test_an_exception_of_the_policy_stops_the_robot_and_the_worker_lives_on(make_rig: Callable[..., Rig]) -> None:
    def fail(call: int) -> None:
        if call in (2, 3):
            raise RuntimeError("CUDA error")

    rig = make_rig(fail=fail)
    rig.settings = Settings().with_values({"gate.mode": "off"})
    rig.step(2)
    for count in (1, 2):
        rig.post()
        rig.wait(rig.faults, count)
    assert [stop.detail for stop in rig.stops] == ["RuntimeError: CUDA error"]
    assert rig.stops[0].cause is Reason.FAULT
    rig.step(1)
    assert rig.worker.state is State.RUNNING


def test_an_action_that_is_not_finite_stops_the_robot_where_it_is(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig([[0.5, 0.0, 0.0, 1.0], [float("nan"), 0.0, 0.0, 1.0]])
    rig.step(1)
    rig.post()
    rig.wait(rig.stops, 1)
    assert "not finite in ['x']" in rig.stops[0].detail
    np.testing.assert_array_equal(rig.stops[0].command, [[0.0, 0.0, 0.0, 0.01]])
    assert len(rig.steps) == 1


def test_a_robot_that_was_never_commanded_is_stopped_in_silence(rig: Rig) -> None:
    rig.worker.stop(Reason.EMERGENCY_STOP, "button")
    assert rig.stops[0].command is None
    assert rig.worker.state is State.STOPPED


def test_a_failing_publisher_is_a_fault_and_does_not_kill_the_thread(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    note, failed = rig._note, []

    def fail_once(log: list[Any], item: Any) -> None:
        if log is rig.steps and not failed:
            failed.append(item)
            raise RuntimeError("the context is gone")
        note(log, item)

    rig._note = fail_once  # type: ignore[method-assign]
    rig.post()
    rig.wait(rig.faults, 1)
    rig.step(1)
    assert len(rig.steps) == 1


def test_closing_hands_nothing_on_and_says_whether_the_model_let_go(rig: Rig) -> None:
    rig.hang()
    assert not rig.worker.close()
    rig.go.set()
    assert rig.worker.close()
    assert rig.steps == []


def test_stops_and_resets_from_many_threads_never_let_an_old_result_through(rig: Rig) -> None:
    """Each step handed on must belong to the epoch in which its observation was posted."""
    epochs: dict[float, int] = {}
    epoch, lock, wrong = [0], threading.Lock(), []
    note = rig._note

    def check(log: list[Any], item: Any) -> None:
        if log is rig.steps and epochs[item.observation.stamp_s] != epoch[0]:
            wrong.append(item)
        note(log, item)

    rig._note = check  # type: ignore[method-assign]
    rig.settings = Settings().with_values({"gate.mode": "off"})

    def disturb() -> None:
        for _ in range(100):
            with lock, rig.worker._lock:
                epoch[0] += 1
                rig.worker.reset()

    def post(thread: int) -> None:
        for number in range(100):
            stamp_s = thread + number / 1000
            with lock:
                epochs[stamp_s] = epoch[0]
                rig.worker.post(make_observation(stamp_s, size=(8, 8)))

    threads = [threading.Thread(target=disturb)] + [threading.Thread(target=post, args=(i,)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    epochs[9.0] = epoch[0]
    rig.worker.post(make_observation(9.0, size=(8, 8)))
    rig.wait(rig.steps, 1)
    while rig.steps[-1].observation.stamp_s != 9.0:
        rig.wait(rig.steps, len(rig.steps) + 1)
    assert wrong == []
    assert rig.faults == []


def test_settings_replaced_while_the_model_runs_are_in_force_for_its_command(rig: Rig) -> None:
    rig.step()
    calls = rig.policy.calls
    rig.hang()
    changed = rig.worker.settings.with_values({"gate.delta": 0.9, "limits.upper": (0.001, 1.0, 1.0, 1.0)})
    rig.settings = changed
    rig.go.set()
    rig.wait(rig.steps, 2)
    assert rig.steps[1].settings is changed
    assert rig.steps[1].command[0, 0] == 0.001
    assert (rig.steps[1].step, rig.steps[1].fresh) == (1, True)
    assert rig.policy.calls == calls + 1  # the model is not asked twice


NARROW = {"limits.upper": (0.001, 1.0, 1.0, 1.0)}


def test_settings_replaced_while_the_model_is_asked_again_are_in_force_too(make_rig: Callable[..., Rig]) -> None:
    def change(call: int) -> None:
        if call in (1, 2):
            values = {"pruning.keep_ratio": 0.25} if call == 1 else NARROW
            rig.settings = rig.worker.settings.with_values(values)

    rig = make_rig(fail=change)
    rig.step(2)
    assert rig.steps[1].settings is rig.settings
    assert rig.steps[1].command[0, 0] == 0.001


def test_settings_replaced_while_a_finished_step_waits_are_in_force_for_its_command(rig: Rig) -> None:
    rig.step()
    rig.hang()
    with rig.worker.changing(rig.worker.settings):
        rig.go.set()
        end_s = time.monotonic() + LONG_S
        while rig.worker._stepper.state.step < 2 and time.monotonic() < end_s:
            time.sleep(0.001)
        time.sleep(0.01)
        rig.settings = rig.worker.settings.with_values(NARROW)
    rig.wait(rig.steps, 2)
    assert rig.steps[1].settings is rig.settings
    assert rig.steps[1].command[0, 0] == 0.001


def test_other_pruning_while_the_model_runs_asks_it_again(rig: Rig) -> None:
    rig.step()
    calls = rig.policy.calls
    rig.hang()
    rig.settings = rig.worker.settings.with_values({"pruning.keep_ratio": 0.25})
    rig.go.set()
    rig.wait(rig.steps, 2)
    assert rig.steps[1].settings.pruning.keep_ratio == 0.25
    assert rig.policy.calls == calls + 2


def test_discard_drops_what_is_under_way_and_keeps_the_memory(rig: Rig) -> None:
    rig.step(2)
    rig.hang()
    rig.post()
    rig.worker.discard()
    rig.settings = Settings()
    rig.post("close the drawer")
    rig.go.set()
    rig.wait(rig.steps, 3)
    assert rig.steps[2].observation.instruction == "close the drawer"
    assert rig.steps[2].decision.reason is Reason.NEW_INSTRUCTION
    assert rig.worker.late == 1
    assert not rig.stops


def test_a_reset_stops_a_robot_that_moves_once_and_its_memory_is_empty(rig: Rig) -> None:
    rig.step()
    rig.worker.reset()
    rig.worker.reset()
    assert [stop.cause for stop in rig.stops] == [Reason.RESET]
    assert rig.stops[0].command is not None
    assert rig.worker.state is State.STOPPED
    rig.step()
    assert rig.steps[-1].decision.reason is Reason.RESET
    assert rig.worker.state is State.RUNNING


def test_nothing_answers_an_image_that_has_become_too_old(rig: Rig) -> None:
    now_s = 0.0
    rig.worker._stamp_clock = lambda: now_s
    rig.step()
    rig.hang()
    now_s = 1000.0  # the process stood still while the model ran
    rig.go.set()
    rig.wait(rig.stops, 1)
    assert rig.stops[0].cause is Reason.IMAGE_TIMEOUT
    assert "control.max_image_age_s is 2.5" in rig.stops[0].detail
    assert len(rig.steps) == 1
    rig.settings = settings_of(max_image_age_s=0.0)
    rig.step()
    assert len(rig.steps) == 2


def test_a_stop_that_is_due_comes_before_the_command(rig: Rig) -> None:
    rig.step()
    rig.worker.before_command = lambda: rig.worker.stop(Reason.INFERENCE_TIMEOUT, "due")
    rig.post()
    rig.wait(rig.stops, 1)
    rig.worker.before_command = lambda: None
    rig.step()
    assert len(rig.steps) == 2


def test_a_model_that_hangs_is_held_to_its_deadline_whatever_is_forgotten(rig: Rig) -> None:
    rig.step()
    rig.hang()
    rig.worker.discard()
    assert rig.worker.running_since_s is not None
    rig.go.set()
    end_s = time.monotonic() + LONG_S
    while rig.worker.running_since_s is not None and time.monotonic() < end_s:
        time.sleep(0.001)
    assert rig.worker.running_since_s is None
    assert rig.worker.late == 1


def test_a_step_is_over_once_its_result_is_handed_on(rig: Rig) -> None:
    running = []
    rig.worker._on_step = lambda result: (running.append(rig.worker.running_since_s), rig._note(rig.steps, result))
    rig.step()
    assert running == [None]


def settings_of(**values: Any) -> Settings:
    return Settings().with_values({f"control.{name}": value for name, value in values.items()})


def test_a_dry_run_begins_with_a_stop_and_nothing_is_stopped_in_it(rig: Rig) -> None:
    rig.step()
    assert rig.worker.in_force is not None
    rig.change(settings_of(dry_run=True))
    assert [stop.cause for stop in rig.stops] == [Reason.DRY_RUN]
    assert rig.stops[0].detail == "control.dry_run is true: commands are computed and not sent"
    assert rig.stops[0].command is not None
    assert rig.worker.running_since_s is None
    rig.step()
    assert rig.worker.in_force is None
    assert rig.steps[-1].settings.control.dry_run
    rig.worker.stop(Reason.IMAGE_TIMEOUT, "silent")
    assert rig.stops[-1].command is None  # something else may be moving the robot
    rig.change(settings_of())
    rig.step()
    assert rig.worker.in_force is not None


def test_a_step_under_way_is_not_sent_once_a_dry_run_began(rig: Rig) -> None:
    rig.hang()
    rig.change(settings_of(dry_run=True))
    rig.go.set()
    rig.step()
    assert [result.settings.control.dry_run for result in rig.steps] == [True]
    assert rig.worker.late == 1


def test_a_deviation_holds_until_a_reset_and_an_emergency_stop_outranks_it(rig: Rig) -> None:
    rig.step()
    rig.worker.stop(Reason.DEVIATION, "elbow")
    rig.worker.stop(Reason.IMAGE_TIMEOUT, "silent")
    rig.worker.stop(Reason.EMERGENCY_STOP, "button")
    rig.worker.stop(Reason.EMERGENCY_STOP, "button")
    assert [stop.cause for stop in rig.stops] == [Reason.DEVIATION, Reason.EMERGENCY_STOP]
    rig.worker.reset()
    rig.step()
    assert rig.worker.state is State.RUNNING


def chunk_worker(
    command_type: str, later: dict[str, Any] | None = None
) -> tuple[Worker, list[Stop], Callable[[float], None]]:
    """A robot that was told the chunk 1 to 4 and does not report where it is, its stops, and what turns its clock."""
    stops: list[Stop] = []
    stepped = threading.Semaphore(0)
    now_s = [100.0]
    settings = Settings().with_values({"command.type": command_type})
    worker = Worker(
        Stepper(
            ScriptedPolicy([[[row] for row in (1.0, 2.0, 3.0, 4.0)]], scale=1.0),
            ActionSpec(("elbow",), (ActionKind.ABSOLUTE,), 0.1),
        ),
        lambda: settings,
        on_step=lambda _: stepped.release(),
        on_stop=stops.append,
        on_fault=lambda error: pytest.fail(str(error)),
        clock=lambda: now_s[0],
    )
    worker.start()
    worker.post(make_observation(1.0))
    assert stepped.acquire(timeout=LONG_S)
    settings = settings.with_values(later or {})
    return worker, stops, lambda seconds: now_s.__setitem__(0, 100.0 + seconds)


@pytest.mark.parametrize("command_type, row", [("JointTrajectory", 2.0), ("Float64MultiArray", 1.0)])
def test_a_stop_holds_the_row_that_the_robot_was_told_last(command_type: str, row: float) -> None:
    worker, stops, turn = chunk_worker(command_type)
    turn(0.2)
    assert worker.in_force is not None
    assert worker.in_force.tolist() == [row]
    worker.stop(Reason.IMAGE_TIMEOUT, "silent")
    worker.close()
    assert [stop.command.tolist() for stop in stops if stop.command is not None] == [[[row]]]


def test_a_robot_that_stands_is_not_moved_by_another_stop_or_by_the_step_after_it() -> None:
    """A trajectory ends where the first stop cut it off; another stop publishes nothing, for it may have moved."""
    worker, stops, turn = chunk_worker("JointTrajectory", {"control.ramp_s": 1.0})
    turn(0.2)
    worker.stop(Reason.IMAGE_TIMEOUT, "silent")
    turn(5.0)
    worker.stop(Reason.EMERGENCY_STOP, "button")
    assert [stop.command.tolist() for stop in stops if stop.command is not None] == [[[2.0]]]
    assert [stop.cause for stop in stops] == [Reason.IMAGE_TIMEOUT, Reason.EMERGENCY_STOP]
    worker.reset()
    worker.post(make_observation(6.0))
    end_s = time.monotonic() + LONG_S
    while worker.in_force is None and time.monotonic() < end_s:
        time.sleep(0.001)
    assert worker.in_force is not None
    assert worker.in_force.tolist() == [2.0]  # a ramp begins at a speed of 0
    worker.close()


def test_a_stop_starts_from_where_the_robot_is_now() -> None:
    stops: list[Stop] = []
    positions = {"elbow": 0.25}
    stepped = threading.Semaphore(0)
    settings = Settings()
    worker = Worker(
        Stepper(ScriptedPolicy(actions=[[1.0]]), ActionSpec(("elbow",), (ActionKind.ABSOLUTE,), 0.1)),
        lambda: settings,
        on_step=lambda _: stepped.release(),
        on_stop=stops.append,
        on_fault=lambda error: pytest.fail(str(error)),
        positions=lambda: positions,
    )
    worker.start()
    worker.post(make_observation(1.0))
    assert stepped.acquire(timeout=LONG_S)
    positions = {"elbow": 0.5}
    worker.stop(Reason.IMAGE_TIMEOUT, "silent")
    worker.close()
    assert stops[0].command is not None
    assert stops[0].command.tolist() == [[0.5]]
