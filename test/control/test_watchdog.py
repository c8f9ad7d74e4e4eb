"""The watchdog on a clock of the test's own: what it notices, when, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes import SPEC, ScriptedPolicy, make_observation

from flashvla_ros.control import watchdog as watchdog_module
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.watchdog import Watchdog
from flashvla_ros.control.worker import State, Stop, Worker
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec

LONG_S = 20.0


class Bench:
    """A worker and its watchdog, both on a clock that the test turns."""

    def __init__(self, stepper: Stepper | None = None, values: dict[str, Any] | None = None) -> None:
        self.now_s = 100.0
        self.stops: list[Stop] = []
        self.stepped, self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
        self.go.set()
        self.settings = Settings().with_values(values or {"gate.mode": "off"})
        self.worker = Worker(
            stepper or Stepper(ScriptedPolicy(before=self._before), SPEC),
            lambda: self.settings,
            on_step=lambda _: self.stepped.release(),
            on_stop=self.stops.append,
            on_fault=lambda error: pytest.fail(str(error)),
            clock=lambda: self.now_s,
        )
        self.watchdog = Watchdog(self.worker, clock=lambda: self.now_s)
        self.worker.start()

    def _before(self, _: int) -> None:
        self.entered.release()
        assert self.go.wait(LONG_S)

    def step(self) -> None:
        self.worker.post(make_observation(self.now_s))
        assert self.stepped.acquire(timeout=LONG_S)

    def look_after(self, seconds: float) -> list[Reason]:
        """Return the causes of the stops so far, after turning the clock on and looking once."""
        self.now_s += seconds
        self.watchdog.check()
        return [stop.cause for stop in self.stops]


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.go.set()
    bench.worker.close()


def test_silence_of_a_camera_stops_the_robot_once(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.watchdog.image_arrived("wrist")
    bench.step()
    assert bench.look_after(0.4) == []
    bench.watchdog.image_arrived("front")
    assert bench.look_after(0.2) == [Reason.IMAGE_TIMEOUT]
    assert "camera 'wrist'" in bench.stops[0].detail
    assert "control.image_timeout_s is 0.5" in bench.stops[0].detail
    assert bench.look_after(5.0) == [Reason.IMAGE_TIMEOUT]


def test_the_robot_goes_on_when_images_come_back_and_stops_again_when_they_cease(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.step()
    bench.look_after(1.0)
    bench.watchdog.image_arrived("front")
    bench.step()
    assert bench.worker.state is State.RUNNING
    assert bench.look_after(0.4) == [Reason.IMAGE_TIMEOUT]
    assert bench.look_after(0.4) == [Reason.IMAGE_TIMEOUT] * 2


def test_before_the_first_command_there_is_nothing_to_stop(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    assert bench.look_after(60.0) == []
    assert bench.worker.state is State.WAITING


def test_a_step_begun_while_the_robot_stands_does_not_outlive_its_camera(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.go.clear()
    bench.worker.post(make_observation(bench.now_s))
    assert bench.entered.acquire(timeout=LONG_S)
    assert bench.look_after(0.6) == []
    bench.go.set()
    bench.watchdog.image_arrived("front")
    bench.step()
    assert not bench.stepped.acquire(blocking=False)


def test_the_same_picture_again_and_again_stops_the_robot_until_it_differs(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.step()
    for _ in range(20):
        bench.now_s += 0.1
        bench.watchdog.image_arrived("front", same=True)
    assert (bench.look_after(0.0), bench.worker.frozen) == ([], False)  # 2 s is the limit
    bench.now_s += 0.1
    bench.watchdog.image_arrived("front", same=True)
    assert (bench.look_after(0.0), bench.worker.frozen) == ([Reason.FROZEN_IMAGE], True)
    assert "camera 'front'" in bench.stops[0].detail
    assert "control.frozen_image_s is 2" in bench.stops[0].detail
    for _ in range(50):
        bench.watchdog.image_arrived("front", same=True)
        bench.look_after(0.1)
    assert (len(bench.stops), bench.worker.frozen) == (1, True)
    bench.worker.post(make_observation(bench.now_s))
    assert not bench.stepped.acquire(timeout=0.2)  # whoever posts, a frozen camera is not answered
    bench.watchdog.image_arrived("front")
    assert not bench.worker.frozen
    bench.step()
    assert bench.worker.state is State.RUNNING


def test_one_frozen_camera_of_two_is_enough(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.watchdog.image_arrived("wrist")
    bench.step()
    for _ in range(25):
        bench.now_s += 0.1
        bench.watchdog.image_arrived("front")
        bench.watchdog.image_arrived("wrist", same=True)
    assert bench.look_after(0.0) == [Reason.FROZEN_IMAGE]
    assert "camera 'wrist'" in bench.stops[0].detail
    bench.watchdog.image_arrived("front")
    assert bench.worker.frozen
    bench.watchdog.image_arrived("wrist")
    assert not bench.worker.frozen


def test_a_scene_at_rest_is_not_frozen_before_the_robot_is_commanded(bench: Bench) -> None:
    for _ in range(100):
        bench.now_s += 0.1
        bench.watchdog.image_arrived("front", same=True)
    bench.step()
    bench.watchdog.image_arrived("front", same=True)
    assert bench.look_after(0.1) == []
    assert not bench.worker.frozen


def test_zero_allows_a_frozen_camera_at_once(bench: Bench) -> None:
    bench.settings = Settings().with_values({"control.image_timeout_s": 60.0})
    bench.watchdog.image_arrived("front")
    bench.step()
    bench.now_s += 2.1
    bench.watchdog.image_arrived("front", same=True)
    assert bench.worker.frozen
    bench.settings = Settings().with_values({"control.frozen_image_s": 0.0})
    bench.watchdog.image_arrived("front", same=True)
    assert not bench.worker.frozen


def test_a_stop_that_is_due_comes_before_the_image_that_ends_its_cause(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.step()
    bench.now_s += 5.0  # the whole process stood still
    bench.watchdog.image_arrived("front")
    assert [stop.cause for stop in bench.stops] == [Reason.IMAGE_TIMEOUT]


@pytest.mark.parametrize("rate_hz", [0.0, 0.5])
def test_a_command_that_nothing_follows_has_an_end(bench: Bench, rate_hz: float) -> None:
    values = {"image_timeout_s": 0.5, "inference_timeout_s": 2.0, "rate_hz": rate_hz}
    bench.settings = Settings().with_values({f"control.{name}": value for name, value in values.items()})
    bench.step()
    allowed_s = 2.5 + (2.0 if rate_hz else 0.0)
    elapsed_s = 0.0
    while elapsed_s < allowed_s - 0.2:  # images arrive all the while
        bench.watchdog.image_arrived("front")
        assert bench.look_after(0.1) == []
        elapsed_s += 0.1
    bench.watchdog.image_arrived("front")
    assert bench.look_after(0.4) == [Reason.COMMAND_TIMEOUT]
    assert bench.look_after(0.4) == [Reason.COMMAND_TIMEOUT]  # once


def test_a_new_time_out_holds_at_once(bench: Bench) -> None:
    bench.watchdog.image_arrived("front")
    bench.step()
    bench.settings = Settings().with_values({"control.image_timeout_s": 2.0})
    assert bench.look_after(1.9) == []
    assert bench.look_after(0.2) == [Reason.IMAGE_TIMEOUT]


def test_a_model_that_hangs_stops_the_robot_and_its_late_result_is_dropped(bench: Bench) -> None:
    bench.step()
    assert bench.entered.acquire(timeout=LONG_S)
    bench.go.clear()
    bench.worker.post(make_observation(bench.now_s + 0.1))
    assert bench.entered.acquire(timeout=LONG_S)
    assert bench.look_after(1.9) == []
    assert bench.look_after(0.2) == [Reason.INFERENCE_TIMEOUT]
    assert "control.inference_timeout_s is 2" in bench.stops[0].detail
    assert bench.look_after(10.0) == [Reason.INFERENCE_TIMEOUT]
    assert bench.worker.state is State.STOPPED
    bench.worker.post(make_observation(bench.now_s))
    bench.go.set()
    assert bench.stepped.acquire(timeout=LONG_S)
    assert bench.worker.late == 1
    assert not bench.stepped.acquire(blocking=False)


def test_a_model_that_was_asked_ahead_is_timed_until_its_answer_is_there() -> None:
    chunk = [[row / 10, 0.0, 0.0, 1.0] for row in range(8)]
    policy = ScriptedPolicy([chunk], before=lambda _: bench._before(0))
    executor = ThreadPoolExecutor(1, "test-prefetch")
    stepper = Stepper(policy, SPEC, clock=lambda: bench.now_s, executor=executor)
    bench = Bench(stepper, {"gate.mode": "off", "control.prefetch": 7})
    bench.step()
    bench.go.clear()
    bench.now_s += 0.1
    bench.step()  # asks for the next chunk
    bench.now_s += 1.0
    assert bench.worker.running_since_s == pytest.approx(100.1)
    bench.go.set()
    asked = stepper.state.asked
    assert asked is not None
    asked.answer.result(LONG_S)
    assert bench.look_after(1.1) == []  # a slow camera, or control.rate_hz, is no slow model
    bench.worker.close()


def test_a_model_that_hangs_at_its_first_step_is_noticed_too(bench: Bench) -> None:
    bench.go.clear()
    bench.worker.post(make_observation(bench.now_s))
    assert bench.entered.acquire(timeout=LONG_S)
    assert bench.look_after(2.1) == [Reason.INFERENCE_TIMEOUT]
    assert bench.stops[0].command is None


def test_it_looks_by_itself_once_started() -> None:
    stopped = threading.Event()
    settings = Settings().with_values({"control.image_timeout_s": 0.02})
    worker = Worker(
        Stepper(ScriptedPolicy(), SPEC),
        lambda: settings,
        on_step=lambda _: None,
        on_stop=lambda _: stopped.set(),
        on_fault=lambda error: pytest.fail(str(error)),
    )
    watchdog = Watchdog(worker)
    worker.start()
    watchdog.start()
    watchdog.image_arrived("front")
    worker.post(make_observation(1.0))
    assert stopped.wait(LONG_S)
    watchdog.close()
    assert worker.close()


def test_a_watchdog_that_cannot_look_stops_the_robot_and_goes_on(bench: Bench) -> None:
    stopped, times = threading.Event(), itertools.chain([100.0], [None] * 3, itertools.repeat(100.0))
    bench.step()
    bench.stops = stops = []
    bench.worker._on_stop = lambda stop: (stops.append(stop), stopped.set())
    watchdog = Watchdog(bench.worker, clock=lambda: next(times))  # type: ignore[arg-type, return-value]
    watchdog.start()
    assert stopped.wait(LONG_S)
    while next(times) is None:
        pass
    assert watchdog._thread.is_alive()
    watchdog.close()
    assert [stop.cause for stop in stops] == [Reason.FAULT]
    assert "the watchdog cannot look" in stops[0].detail


def test_a_robot_that_stays_behind_its_command_is_stopped_once_that_has_lasted() -> None:
    behind = {"control.max_deviation": (0.1,), "control.deviation_time_s": 0.3}
    bench = Bench(
        Stepper(ScriptedPolicy(actions=[[1.0]], scale=1.0), ActionSpec(("elbow",), (ActionKind.ABSOLUTE,), 0.1)),
        {"action.names": ("elbow",), "action.kinds": ("absolute",), "gate.mode": "off", **behind},
    )
    try:
        bench.worker.post(dataclasses.replace(make_observation(bench.now_s), joint_positions={"elbow": 0.95}))
        assert bench.stepped.acquire(timeout=LONG_S)
        assert bench.look_after(1.0) == []
        bench.worker.post(dataclasses.replace(make_observation(bench.now_s), joint_positions={"elbow": 0.5}))
        assert bench.stepped.acquire(timeout=LONG_S)
        assert bench.look_after(0.1) == []  # it was noticed as the command left
        assert bench.look_after(0.19) == []
        assert bench.look_after(0.02) == [Reason.DEVIATION]
        assert bench.stops[0].detail.startswith("elbow is at 0.5 and was commanded to 1 (control.max_deviation is 0.1)")
    finally:
        bench.worker.close()


def test_after_the_process_was_suspended_the_robot_is_held_until_what_was_sent_meanwhile_has_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "_PERIOD_S", LONG_S)  # it looks when the test says so
    bench.watchdog.start()
    while bench.watchdog._looked_s is None:
        time.sleep(0.001)
    bench.step()
    assert bench.look_after(0.9) == []
    bench.step()
    assert bench.look_after(1.1) == [Reason.IMAGE_TIMEOUT]
    assert "was suspended" in bench.stops[0].detail
    for _ in range(3):  # no image moves it meanwhile
        bench.watchdog.image_arrived("front")
        bench.worker.post(make_observation(bench.now_s))
        assert bench.look_after(0.9) == [Reason.IMAGE_TIMEOUT]
        assert not bench.stepped.acquire(timeout=0.2)
    assert bench.look_after(0.9) == [Reason.IMAGE_TIMEOUT]  # once
    bench.watchdog.image_arrived("front")
    bench.step()
    assert bench.worker.stopped_by is None
    bench.watchdog.close()
