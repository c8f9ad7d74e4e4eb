"""One policy node lives through every fault: it stops the robot in time, once, and goes on when the fault has ended.

Real processes and DDS. Lateness is taken from stamps on the system's clock, of the image and of the stop action, so
that the time a loaded machine takes to deliver a message to this test does not count.
"""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lifecycle_msgs.srv import GetState
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from std_msgs.msg import Bool
from std_srvs.srv import Trigger
from surroundings import IMAGE_TIMEOUT_S, PATIENCE_S, PERIOD_S, Camera, Peer, Surroundings, seconds

from flashvla_ros.msg import GateStatus

pytestmark = pytest.mark.timeout(300)  # each takes seconds where the machine is idle

BOUND_S = 1.5 * PERIOD_S
ANSWER_S = 0.05
INFERENCE_TIMEOUT_S = 0.6


@pytest.fixture(scope="module")
def around(tmp_path_factory) -> Iterator[Surroundings]:
    folder = tmp_path_factory.mktemp("faults")
    # The policy's fault shows where the model is run next, so the bounds below count on every other step.
    # A slow model and stamps of another hour are faults here, so images of any age are answered.
    values = {"control.inference_timeout_s": INFERENCE_TIMEOUT_S, "gate.max_reuse": 1, "control.max_image_age_s": 0.0}
    around = Surroundings(folder, **values)
    yield around
    around.close()


@pytest.fixture
def running(around) -> Surroundings:
    """The node that has lived through the tests before, moving the robot."""
    around.run()
    return around


def check_stop(around: Surroundings, cause: str, began_s: float, due_s: float) -> None:
    """The robot was told to stop once since `began_s`, and not later than the bound after `due_s`."""
    around.until(lambda: around.stops(began_s), f"the stop action for {cause}")
    lateness_s = around.stops(began_s)[0] - due_s
    state = around.state()
    assert (state.state, state.stop_reason.partition(":")[0]) == ("stopped", cause)
    assert len(around.stops(began_s)) == 1
    assert lateness_s <= BOUND_S, f"{lateness_s:.3f} s late"


def check_recovery(around: Surroundings, cause: str) -> None:
    """The robot moves again, and the first step says why it could not be a reuse."""
    steps = len(around.gates)
    around.wait_for_steps()
    assert around.gates[steps].reason == cause
    assert around.state().state == "running"


@pytest.fixture
def peer() -> Iterator[Callable[[str], Peer]]:
    """Starts cameras and robots as processes; none outlives its test."""
    peers: list[Peer] = []

    def start(role: str) -> Peer:
        peers.append(Peer(role))
        return peers[-1]

    yield start
    for started in peers:
        started.kill()


def test_a_camera_that_is_killed_and_one_that_takes_its_place(running, peer):
    running.unplug()
    camera = peer("camera")
    running.wait_for_steps()
    camera.kill()
    began_s = time.time()
    running.until(lambda: running.stops(began_s), "the stop action")
    check_stop(running, "image_timeout", began_s, seconds(running.gates[-1].header.stamp) + IMAGE_TIMEOUT_S)
    peer("camera")
    check_recovery(running, "image_timeout")


def test_a_robot_that_is_killed_holds_nothing_up(running, peer):
    robot = peer("robot")
    running.until(lambda: robot.lines, "a command to the robot")
    robot.kill()
    steps = len(running.gates)
    running.spin(10 * PERIOD_S)
    assert len(running.gates) - steps >= 5  # DDS still waits for its reliable reader, the node does not
    robot = peer("robot")
    running.until(lambda: robot.lines, "a command to the robot that came back")


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_policy_that_raises_or_answers_nonsense(running, fault):
    began_s = time.time()
    running.fault(fault)
    running.until(lambda: running.stops(began_s), "the stop action")
    first_s = next(stamp_s for stamp_s in running.camera.stamps if stamp_s >= began_s - PERIOD_S)
    check_stop(running, "fault", began_s, first_s + PERIOD_S)
    words = {"raise": "RuntimeError: the model is out of order", "nan": "is not finite in ['x', 'y', 'z', 'gripper']"}
    assert words[fault] in running.statuses[-1].stop_reason
    running.fault("")
    check_recovery(running, "fault")


def test_a_model_that_hangs_for_ten_seconds(running):
    late = len(running.gates)
    began_s = time.time()
    running.fault("hang")
    running.until(lambda: running.stops(began_s), "the stop action")
    running.fault("")
    first_s = next(stamp_s for stamp_s in running.camera.stamps if stamp_s >= began_s)
    check_stop(running, "inference_timeout", began_s, first_s + INFERENCE_TIMEOUT_S)
    check_recovery(running, "inference_timeout")
    resumed = [gate for gate in running.gates[late:] if seconds(gate.header.stamp) > first_s + PERIOD_S]
    assert seconds(resumed[0].header.stamp) > began_s + 8.0  # what the model said of the old image was dropped


def test_parameters_state_and_the_emergency_stop_answer_while_the_model_runs_for_two_seconds(running):
    client = AsyncParameterClient(running.node, "flashvla")
    stop = running.node.create_publisher(Bool, "emergency_stop", 10)
    reset = running.node.create_client(Trigger, "/flashvla/reset")
    get_state = running.node.create_client(GetState, "/flashvla/get_state")

    def answer_s(ask: Callable[[], Future[Any]]) -> float:
        began_s = time.monotonic()
        running.until(ask().done, "the answer")
        return time.monotonic() - began_s

    def set_s(name: str, value: float) -> float:
        return answer_s(lambda: client.set_parameters([Parameter(name, value=value)]))

    running.until(
        lambda: client.services_are_ready() and reset.service_is_ready() and get_state.service_is_ready(), "services"
    )
    running.until(stop.get_subscription_count, "the emergency stop's reader")
    set_s("control.inference_timeout_s", 20.0)
    # Where other work makes an answer slow without any inference, no more than three times that.
    bound_s = max(ANSWER_S, 3.0 * statistics.median(set_s("gate.delta", index / 10) for index in range(10)))
    running.fault("slow")
    running.spin(1.0)  # it runs, and runs again as soon as it has answered
    assert statistics.median(set_s("gate.delta", index / 10) for index in range(10)) < bound_s
    assert statistics.median(answer_s(lambda: get_state.call_async(GetState.Request())) for _ in range(10)) < bound_s
    statuses = len(running.statuses)
    running.until(lambda: len(running.statuses) >= statuses + 6, "statuses")
    stamps_s = [seconds(status.header.stamp) for status in running.statuses[statuses:]]
    late_s = [after - before - 1.0 for before, after in itertools.pairwise(stamps_s)]  # ~/status comes once a second
    assert statistics.median(map(abs, late_s)) < bound_s
    stopped_s = []
    for _ in range(3):
        began_s = time.time()
        stop.publish(Bool(data=True))
        running.until(lambda began_s=began_s: running.stops(began_s), "the stop action")
        stopped_s.append(running.stops(began_s)[0] - began_s)
        running.until(reset.call_async(Trigger.Request()).done, "the reset")
        steps = len(running.gates)
        running.until(lambda steps=steps: len(running.gates) > steps, "a step")
    assert statistics.median(stopped_s) < bound_s
    running.fault("")
    running.wait_for_steps()
    set_s("control.inference_timeout_s", INFERENCE_TIMEOUT_S)


def test_frames_that_are_frozen(running):
    began_s = time.time()
    running.camera.frozen = True
    running.until(lambda: running.stops(began_s), "the stop action")
    first_s = next(stamp_s for stamp_s in running.camera.stamps if stamp_s >= began_s - PERIOD_S)
    # The last picture that differed, the limit, and one image more to notice it by.
    check_stop(running, "frozen_image", began_s, first_s + IMAGE_TIMEOUT_S + PERIOD_S)
    steps = len(running.gates)
    running.spin(2 * IMAGE_TIMEOUT_S)
    assert len(running.gates) == steps
    running.camera.frozen = False
    check_recovery(running, "frozen_image")


def test_stamps_that_jump_back_and_forth(running):
    steps = len(running.gates)
    for shift_s in (-3600.0, 0.0, 3600.0, 0.0):
        running.camera.shift_s = shift_s
        running.wait_for_steps()
    jumps = []
    for before, gate in itertools.pairwise(running.gates[steps - 1 :]):
        jump_s = seconds(gate.header.stamp) - seconds(before.header.stamp)
        if abs(jump_s) > 1000.0:
            jumps.append((jump_s > 0.0, gate.reason))
            assert gate.decision == GateStatus.INFER
            assert abs(gate.age_s) == 0.0
    assert jumps == [(False, "clock_jump"), (True, "stale_gap"), (True, "stale_gap"), (False, "clock_jump")]
    assert running.state().state == "running"


def test_a_camera_whose_quality_of_service_does_not_fit(running):
    began_s = time.time()
    last_s = running.unplug()
    running.camera = Camera(QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    check_stop(running, "image_timeout", began_s, last_s + IMAGE_TIMEOUT_S)
    words = "/image: a publisher offers another RELIABILITY than this node asks for (reliable, volatile)"
    running.until(lambda: words in running.log, "a line that says why")
    running.unplug()
    running.camera = Camera()
    check_recovery(running, "image_timeout")


def test_a_camera_that_is_discovered_late(running):
    began_s = time.time()
    last_s = running.unplug()
    check_stop(running, "image_timeout", began_s, last_s + IMAGE_TIMEOUT_S)
    running.spin(3.0)
    assert len(running.stops(began_s)) == 1
    running.camera = Camera()
    check_recovery(running, "image_timeout")


def test_all_of_this_happened_to_one_process(running):
    assert running.process.poll() is None
    assert "Traceback" not in running.log.replace("Traceback (most recent call last)", "", 1)  # the one that was raised
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(PATIENCE_S)
    assert running.process.returncode == 0
