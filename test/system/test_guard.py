"""The guard outlives the policy: killed, stopped, drowned out or silenced, the robot is told to stop, in time and once.

The policy node, the guard and this observer are processes of their own. When something was sent is what the middleware
stamps on it, so that the time a loaded machine takes to deliver it to this test does not count; what such a machine
takes to wake a thread is measured at the same time, and allowed.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from surroundings import PERIOD_S, Surroundings, seconds

from flashvla_ros.nodes import interfaces

pytestmark = pytest.mark.timeout(300)

TIMEOUT_S, MAX_AGE_S, SPACE = 0.8, 1.0, "/guarded"
BOUND_S = 1.5 * PERIOD_S


class Jitter(threading.Thread):
    """How late an idle thread of this machine wakes up.

    Attributes:
        worst_s: Since it was last set to 0.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.worst_s = 0.0
        self.start()

    def run(self) -> None:
        while True:
            due_s = time.monotonic() + 0.01
            time.sleep(0.01)
            self.worst_s = max(self.worst_s, time.monotonic() - due_s)


class Guarded(Surroundings):
    """A policy node, its guard, and what comes out of it.

    Attributes:
        sent: When the guard published each command, on the system's clock, and its speed along x.
        states: What the guard said of itself.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            SPACE,
            ("command:=command_unguarded", "gripper_command:=gripper_command_unguarded"),
            **{"control.require_guard": "true", "control.frozen_image_s": 0.0, "gate.mode": "off"},
        )
        self.sent: list[tuple[float, TwistStamped]] = []
        self.states: list[DiagnosticStatus] = []
        command, status = interfaces.COMMAND, interfaces.GUARD_STATUS
        self.node.create_subscription(command.type, command.name, self._on_command, 100)
        self.node.create_subscription(status.type, status.name, self.states.append, 100)
        self.emergency_stop = self.node.create_publisher(Bool, "emergency_stop", 10)
        self.resets = [self.node.create_client(Trigger, f"{SPACE}/{name}/reset") for name in ("flashvla", "guard")]
        self.jitter = Jitter()
        self.start_guard()

    def start_guard(self) -> None:
        values = {
            "guard.timeout_s": TIMEOUT_S,
            "guard.max_age_s": MAX_AGE_S,
            "guard.max_transit_s": MAX_AGE_S,
            "limits.lower": [-0.1] * 3 + [0.0] * 3,
            "limits.upper": [0.1] * 3 + [0.0] * 3,
        }
        words = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "flashvla_ros.guard.node", "--ros-args", "-r", f"__ns:={SPACE}", *words]
        self.guard = subprocess.Popen(command, stderr=self._log)

    def _on_command(self, message: TwistStamped, info: dict[str, int]) -> None:
        self.sent.append((info["source_timestamp"] * 1e-9, message))

    @property
    def cause(self) -> str:
        return next(pair.value for pair in self.states[-1].values if pair.key == "cause") if self.states else ""

    def move(self) -> None:
        """Wait until the robot moves, and go on for a while."""
        self.run()
        self.spin(2 * PERIOD_S)
        count = len(self.sent)
        self.until(lambda: len(self.sent) >= count + 2 and self.sent[-1][1].twist.linear.x != 0.0, "motion")
        self.jitter.worst_s = 0.0

    def stop_after(self, count: int) -> tuple[float, float]:
        """Wait for the stop action behind so many commands; returns when the last motion before it was sent, and it."""
        self.until(lambda: any(message.twist.linear.x == 0.0 for _, message in self.sent[count:]), "the stop action")
        at = next(at for at in range(count, len(self.sent)) if self.sent[at][1].twist.linear.x == 0.0)
        return self.sent[at - 1][0], self.sent[at][0]

    def check_nothing_more(self, why: str, policys: int = 0) -> None:
        """The cause is said, and nothing follows the stop action while it lasts.

        A policy that hears of the cause too may send its own stop action first, and the guard lets that pass.
        """
        self.until(lambda: self.cause == why, f"the cause {why}, not {self.cause},")
        count = len(self.sent)
        self.spin(3 * PERIOD_S)
        assert self.sent[count:] == []
        assert self.sent[-1][1].twist.linear.x == 0.0
        earlier = [message.twist.linear.x for _, message in self.sent[:-1]]
        assert all(earlier[-1 - policys :][:1])  # once, but for the policy's

    def close(self) -> None:
        self.guard.kill()
        self.guard.wait()
        super().close()


@pytest.fixture(scope="module")
def around(tmp_path_factory) -> Iterator[Guarded]:
    around = Guarded(tmp_path_factory.mktemp("guard"))
    yield around
    around.close()


@pytest.fixture
def moving(around) -> Guarded:
    around.move()
    return around


def test_every_thread_of_the_guard_goes_before_other_processes_where_the_system_grants_that(moving):
    classes = {os.sched_getscheduler(int(thread.name)) for thread in Path(f"/proc/{moving.guard.pid}/task").iterdir()}
    refused = "no real-time priority" in moving.log
    assert classes == {os.SCHED_OTHER if refused else os.SCHED_FIFO}


def test_a_policy_that_is_stopped_and_goes_on(moving):
    count = len(moving.sent) - 1
    moving.process.send_signal(signal.SIGSTOP)
    last_s, stop_s = moving.stop_after(count)
    assert stop_s - last_s - TIMEOUT_S <= BOUND_S + moving.jitter.worst_s
    moving.until(lambda: moving.cause in ("silence", "publisher"), "the cause")
    moving.check_nothing_more(moving.cause)
    moving.spin(MAX_AGE_S)
    count = len(moving.sent)
    moving.process.send_signal(signal.SIGCONT)
    moving.move()
    for sent_s, message in moving.sent[count:]:
        assert sent_s - seconds(message.header.stamp) <= MAX_AGE_S + 0.1


def test_a_second_publisher_of_commands(moving):
    count = len(moving.sent) - 1
    intruder = moving.node.create_publisher(TwistStamped, "command_unguarded", interfaces.COMMAND.qos)
    began_s = time.time()
    _, stop_s = moving.stop_after(count)
    assert stop_s - began_s <= BOUND_S + moving.jitter.worst_s
    moving.check_nothing_more("publisher")
    moving.node.destroy_publisher(intruder)
    moving.move()


def test_an_emergency_stop_holds_until_both_are_reset(moving):
    moving.until(moving.emergency_stop.get_subscription_count, "the emergency stop's reader")
    count = len(moving.sent) - 1
    began_s = time.time()
    moving.emergency_stop.publish(Bool(data=True))
    moving.emergency_stop.publish(Bool(data=False))
    _, stop_s = moving.stop_after(count)
    assert stop_s - began_s <= BOUND_S + moving.jitter.worst_s
    moving.check_nothing_more("emergency_stop", policys=1)
    for reset in moving.resets:
        moving.until(reset.service_is_ready, "the reset")
        answer = reset.call_async(Trigger.Request())
        moving.until(answer.done, "the reset's answer")
        assert answer.result().success
    moving.move()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"])
def test_a_guard_that_ends_stops_the_policy_and_a_new_one_lets_it_go_on(moving, name):
    moving.guard.send_signal(signal.Signals[name])
    code = moving.guard.wait()
    if name != "SIGKILL":
        assert code == 0
        moving.until(lambda: moving.sent[-1][1].twist.linear.x == 0.0, "the stop action, its last command")
    # No guard is heard, or the last thing that it said was that it has stopped.
    moving.until(lambda: moving.statuses[-1].stop_reason.startswith("guard: "), "the policy's stop")
    steps, count = len(moving.gates), len(moving.sent)
    moving.spin(3 * PERIOD_S)
    assert (len(moving.gates), len(moving.sent)) == (steps, count)
    moving.start_guard()
    moving.move()


def test_a_policy_that_is_killed(moving):
    count = len(moving.sent) - 1
    os.kill(moving.process.pid, signal.SIGKILL)
    moving.process.poll = lambda: None  # until() would take its end for a failure
    last_s, stop_s = moving.stop_after(count)
    assert stop_s - last_s - TIMEOUT_S <= BOUND_S + moving.jitter.worst_s
    moving.until(lambda: moving.cause in ("silence", "publisher"), "the cause")
    moving.check_nothing_more(moving.cause)


@pytest.mark.parametrize(("x", "cause"), [(math.nan, "not_finite"), (0.2, "limits")])
def test_a_publisher_in_its_place_that_says_what_no_robot_may_do(around, x, cause):
    publisher = around.node.create_publisher(TwistStamped, "command_unguarded", interfaces.COMMAND.qos)

    def say(speed: float) -> None:
        message = TwistStamped()
        message.header.stamp = around.node.get_clock().now().to_msg()
        message.twist.linear.x = speed
        publisher.publish(message)
        around.spin(0.1)

    around.until(publisher.get_subscription_count, "the guard")
    for _ in itertools.takewhile(lambda _: around.sent[-1][1].twist.linear.x != 0.05, range(100)):
        say(0.05)
    count = len(around.sent)
    say(x)
    around.stop_after(count)
    assert all(abs(message.twist.linear.x) <= 0.1 for _, message in around.sent)
    around.until(lambda: cause in around.states[-1].message or around.states[-1].message == "ready", "the cause")
    around.node.destroy_publisher(publisher)
