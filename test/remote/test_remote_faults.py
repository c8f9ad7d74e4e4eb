"""Every fault of a policy server stops the robot within 1.5 periods of the deadline, and says why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, make_observation
from policy_server import ScriptedServer, chunk, cut, well
from websockets.sync.server import ServerConnection

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.watchdog import Watchdog
from flashvla_ros.control.worker import Stop, Worker
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote import wire
from flashvla_ros.remote.policy import RemotePolicy

PERIOD_S, DEADLINE_S = 0.1, 0.25


class Robot:
    """Worker and watchdog on a remote policy, shown a picture in every period; no step is reused."""

    def __init__(self, uri: str) -> None:
        values = {"model.remote": uri, "control.inference_timeout_s": DEADLINE_S, "gate.mode": "off"}
        settings = Settings().with_values(values)
        self.steps: list[tuple[float, StepResult]] = []
        self.stops: list[tuple[float, Stop]] = []
        self.worker = Worker(
            Stepper(RemotePolicy.connect(settings), SPEC),
            lambda: settings,
            on_step=lambda result: self.steps.append((time.monotonic(), result)),
            on_stop=lambda stop: self.stops.append((time.monotonic(), stop)),
            on_fault=lambda _error: None,
        )
        self.watchdog = Watchdog(self.worker)
        self.worker.start()
        self.watchdog.start()
        self.shown: list[float] = []

    def show(self) -> None:
        stamp_s = time.monotonic()
        self.shown.append(stamp_s)
        self.worker.post(make_observation(stamp_s))
        time.sleep(PERIOD_S)

    def until(self, condition: Callable[[], Any]) -> None:
        for _ in range(100):
            if condition():
                return
            self.show()
        raise AssertionError("it did not come")

    def stop(self) -> Stop:
        """Move, wait for the stop, and hold it against the time of the first picture that had no command."""
        self.until(lambda: self.stops)
        answered_s = [result.observation.stamp_s for _, result in self.steps]
        assert answered_s, "the robot never moved"
        unanswered_s = next(stamp_s for stamp_s in self.shown if stamp_s > answered_s[-1])
        stopped_s, stop = self.stops[0]
        assert stopped_s - unanswered_s <= DEADLINE_S + 1.5 * PERIOD_S
        assert stop.command is not None
        np.testing.assert_array_equal(stop.command[0, :3], 0.0)
        return stop

    def close(self) -> None:
        self.watchdog.close()
        self.worker.close()


@pytest.fixture
def robot() -> Iterator[Callable[[str], Robot]]:
    robots: list[Robot] = []

    def start(uri: str) -> Robot:
        robots.append(Robot(uri))
        return robots[-1]

    yield start
    for one in robots:
        one.close()


def slow(_connection: ServerConnection, _message: dict, _number: int) -> dict:
    time.sleep(2 * DEADLINE_S)
    return {"actions": chunk()}


def dribble(connection: ServerConnection, _message: dict, _number: int) -> None:
    """A frame that never ends, a byte at a time."""
    connection.socket.sendall(bytes([0x82, 126, 0x10, 0x00]))
    for _ in range(10):
        connection.socket.sendall(b"\0")
        time.sleep(DEADLINE_S / 5)


def gigabyte(connection: ServerConnection, _message: dict, _number: int) -> None:
    """A frame that announces 1 GB, and its first megabyte."""
    connection.socket.sendall(bytes([0x82, 127]) + (2**30).to_bytes(8, "big") + bytes(2**20))
    time.sleep(DEADLINE_S)


def twice(connection: ServerConnection, message: dict, number: int) -> dict:
    """The answer and, unasked, one to an observation that the robot did not show."""
    connection.send(wire.pack(well(connection, message, number)))
    return {"actions": chunk(1.0)}


FAULTS = {
    "silent": (lambda *_: None, Reason.INFERENCE_TIMEOUT, "no action after"),
    "slow": (slow, Reason.INFERENCE_TIMEOUT, "no action after"),
    "dribbling": (dribble, Reason.INFERENCE_TIMEOUT, "no action after"),
    "reset": (lambda connection, *_: cut(connection), Reason.FAULT, "ws://127"),
    "closing": (lambda connection, *_: connection.close(), Reason.FAULT, "ws://127"),
    "wrong shape": (lambda *_: {"actions": np.zeros((1, 7))}, Reason.FAULT, r"shape \[1, 7\]"),
    "no rows": (lambda *_: {"actions": np.zeros((0, 4))}, Reason.FAULT, r"shape \[0, 4\]"),
    "NaN": (lambda *_: {"actions": chunk(np.nan)}, Reason.FAULT, "not finite"),
    "infinite": (lambda *_: {"actions": chunk(np.inf)}, Reason.FAULT, "not finite"),
    "text for numbers": (lambda *_: {"actions": "up"}, Reason.FAULT, "array of numbers"),
    "no actions": (lambda *_: {"acts": chunk()}, Reason.FAULT, "no 'actions'"),
    "1 GB": (gigabyte, Reason.FAULT, "1009"),
    "no msgpack": (lambda *_: b"\xc1\xc1", Reason.FAULT, "no message of openpi's protocol"),
    "a traceback": (lambda *_: "Traceback\nKeyError: 'image'", Reason.FAULT, "KeyError: 'image'"),
    "unasked": (twice, Reason.FAULT, "nobody had asked for"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_stops_the_robot_in_time_with_its_reason(
    name: str, serve: Callable[..., ScriptedServer], robot: Callable[[str], Robot]
) -> None:
    then, cause, words = FAULTS[name]
    stop = robot(serve(then, good=3).uri).stop()
    assert stop.cause is cause
    assert re.search(words, stop.detail), stop.detail


def test_an_answer_to_another_observation_stops_the_robot_in_time(
    serve: Callable[..., ScriptedServer], robot: Callable[[str], Robot]
) -> None:
    action = Settings().action
    own = {"returns": "stamp_s", "names": list(action.names), "kinds": list(action.kinds), "dt_s": action.dt_s}

    def stamped(connection: ServerConnection, message: dict, number: int) -> dict:
        late = 0.0 if number < 4 else PERIOD_S  # the answer to the picture before
        return {**well(connection, message, number), "stamp_s": message["stamp_s"] - late}

    stop = robot(serve(stamped, good=0, metadata={"flashvla": own}).uri).stop()
    assert stop.cause is Reason.FAULT
    assert "another observation" in stop.detail


def test_a_connection_that_flaps_stops_and_starts_the_robot_and_never_hangs_it(
    serve: Callable[..., ScriptedServer], robot: Callable[[str], Robot]
) -> None:
    def flap(connection: ServerConnection, message: dict, number: int) -> dict | None:
        return cut(connection) if number % 3 == 0 else well(connection, message, number)

    one = robot(serve(flap, good=3).uri)
    one.stop()
    one.until(lambda: len(one.stops) > 2)
    values = [result.command[0, 0] for _, result in one.steps]
    assert len(values) > 3
    assert len(set(values)) == len(values)  # every command is an answer of its own


SERVER = """
import sys
from policy_server import ScriptedServer
print(ScriptedServer().port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen, str]]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as running:
        assert running.stdout is not None
        yield running, f"ws://127.0.0.1:{int(running.stdout.readline())}"
        running.kill()


@pytest.mark.parametrize("number, cause", [(signal.SIGKILL, Reason.FAULT), (signal.SIGSTOP, Reason.INFERENCE_TIMEOUT)])
def test_a_server_process_that_is_killed_or_stopped(
    number: signal.Signals, cause: Reason, process: tuple[subprocess.Popen, str], robot: Callable[[str], Robot]
) -> None:
    running, uri = process
    one = robot(uri)
    one.until(lambda: len(one.steps) > 2)
    running.send_signal(number)
    assert one.stop().cause is cause


def test_the_robot_goes_on_once_its_server_does(
    process: tuple[subprocess.Popen, str], robot: Callable[[str], Robot]
) -> None:
    running, uri = process
    one = robot(uri)
    one.until(lambda: one.steps)
    running.send_signal(signal.SIGSTOP)
    one.until(lambda: one.stops)
    steps = len(one.steps)
    running.send_signal(signal.SIGCONT)
    one.until(lambda: len(one.steps) > steps)
