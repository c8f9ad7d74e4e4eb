"""Everything that must stop the robot, bad input that must not, and how the node goes on afterwards."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from fakes import HeldPolicy, ScriptedPolicy
from policy_bench import PolicyBench, wait
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Header
from std_srvs.srv import Trigger

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.messages.images import decode_image
from flashvla_ros.msg import GateStatus
from flashvla_ros.nodes import inputs, interfaces
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory

MakeBench = Callable[..., PolicyBench]
NAN = float("nan")
BEST_EFFORT = ReliabilityPolicy.BEST_EFFORT


@pytest.fixture
def make() -> Iterator[MakeBench]:
    benches: list[PolicyBench] = []

    def make(*arguments: Any, **parameters: Any) -> PolicyBench:
        benches.append(PolicyBench(*arguments, **{"control__image_timeout_s": 10.0, **parameters}))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def stops(bench: PolicyBench) -> list[Any]:
    """Commands that ask for no motion; the scripted policy always moves along x."""
    return [command for command in bench.commands if command.twist.linear.x == 0.0]


def test_on_simulated_time_stamps_are_its_and_time_outs_are_not(make):
    bench = make(use_sim_time=True, control__image_timeout_s=0.3)
    clock = bench.robot.create_publisher(Clock, "/clock", 10)
    bench.start()
    bench.until(clock.get_subscription_count, "the clock's reader")
    clock.publish(Clock(clock=Time(sec=5)))
    bench.until(lambda: bench.node.get_clock().now().nanoseconds == 5 * 10**9, "the time")
    assert bench.step().header.stamp == Time(sec=5)
    bench.until(lambda: stops(bench), "the stop action, though the clock stands still")
    assert bench.report().header.stamp == Time(sec=5)


def test_a_silent_camera_stops_the_robot_once_and_the_next_image_moves_it_again(make):
    bench = make(control__image_timeout_s=0.3).start()
    bench.step()
    bench.until(lambda: stops(bench), "the stop action")
    bench.spin(0.5)
    assert len(stops(bench)) == 1
    assert bench.grippers[-1].data == bench.grippers[0].data  # a stop leaves the gripper as it was told
    status = bench.report()
    assert (status.state, status.stops) == ("stopped", 1)
    assert status.stop_reason.startswith("image_timeout: no image of camera 'image' for ")
    assert bench.diagnostics[-1].status[0].level == b"\x02"
    bench.log_line("stopped, image_timeout")
    gate = bench.step()
    assert (gate.decision, gate.reason) == (GateStatus.INFER, "image_timeout")
    assert bench.set("control.image_timeout_s", 10.0).successful
    bench.step()
    assert bench.report().state == "running"


def test_a_step_begun_while_the_robot_stands_does_not_outlive_its_guard(make):
    policy = HeldPolicy()
    bench = make(policy, control__require_guard=True)
    guard = bench.robot.create_publisher(DiagnosticStatus, interfaces.GUARD_STATUS.name, interfaces.GUARD_STATUS.qos)
    heartbeat = bench.robot.create_timer(0.05, lambda: guard.publish(DiagnosticStatus(level=DiagnosticStatus.OK)))
    bench.start()
    bench.until(lambda: not bench.node._guard.missing, "the guard")
    bench.step()
    heartbeat.cancel()
    bench.until(lambda: stops(bench), "the stop action")
    heartbeat.reset()
    bench.until(lambda: not bench.node._guard.missing, "the guard again")
    bench.show()
    bench.until(policy.entered.is_set, "the model")
    heartbeat.cancel()
    bench.until(lambda: bench.node._guard.missing, "its silence")
    bench.spin(0.2)
    policy.go_on.set()
    bench.spin(0.3)
    assert len(bench.commands) == 2  # of the first step, and its stop


def test_an_image_of_the_time_before_activation_moves_nothing(make):
    """It has no stamp, so what waited while the model was loaded would look new."""
    benches: list[PolicyBench] = []

    def load(_: object) -> LoadedPolicy:
        benches[0].image.publish(image())
        time.sleep(0.2)
        return LoadedPolicy(ScriptedPolicy())

    benches.append(make(factory=PolicyFactory(load)))
    bench = benches[0].start()
    bench.spin(0.3)
    assert not bench.gates
    bench.image.publish(image())
    bench.until(lambda: bench.gates, "the step")


def test_a_camera_that_repeats_one_picture_stops_the_robot_until_the_picture_changes(make):
    bench = make(control__frozen_image_s=0.2).start()
    bench.step(100)

    def repeat() -> bool:
        bench.show(100)
        bench.spin(0.03)
        return bool(stops(bench))

    bench.until(repeat, "the stop action")
    steps = len(bench.gates)
    for _ in range(5):
        repeat()
    assert (len(bench.gates), len(stops(bench))) == (steps, 1)
    assert bench.report().stop_reason.startswith("frozen_image: camera 'image' has sent the same picture for ")
    bench.log_line("stopped, frozen_image")
    assert bench.step(101).reason == "frozen_image"
    assert bench.report().state == "running"


def test_an_emergency_stop_that_can_never_be_heard_is_told_and_counted(make):
    bench = make().start()
    bench.step()
    deaf = bench.robot.create_publisher(Bool, "emergency_stop", QoSProfile(depth=1, reliability=BEST_EFFORT))
    words = "/emergency_stop: a publisher offers another RELIABILITY than this node asks for"
    bench.until(lambda: bench.logged(words), "a warning")
    assert bench.report().rejected == 1
    deaf.publish(Bool(data=True))
    bench.spin(0.2)
    assert bench.report().state == "running"


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError("the GPU fell off"), "RuntimeError: the GPU fell off"), (KeyError("x"), "KeyError: 'x'")],
)
def test_an_exception_of_the_policy_stops_the_robot_and_the_node_lives(make, error, words):
    def before(call: int) -> None:
        if call == 1:
            raise error

    bench = make(ScriptedPolicy(before=before)).start()
    bench.step()
    bench.show()
    bench.until(lambda: stops(bench), "the stop action")
    assert words in bench.report().stop_reason
    assert bench.step().reason == "fault"


def test_a_policy_that_raised_does_not_make_the_next_bad_message_fatal(make):
    def before(call: int) -> None:
        if call == 1:
            raise RuntimeError("the GPU fell off")

    bench = make(ScriptedPolicy(before=before), gate__mode="off").start()
    bench.step()
    bench.show()
    bench.until(lambda: bench.logged("Traceback"), "the traceback, an error")
    bench.image.publish(Image(encoding="rgb8", height=1, width=1, step=3))
    bench.until(lambda: bench.logged("it is truncated"), "the rejection, a warning")
    bench.step()


def test_an_action_that_is_not_finite_is_never_published(make):
    bench = make(ScriptedPolicy(actions=[[0.5, 0, 0, 1], [0.5, NAN, 0, 1], [0.5, 0, 0, 1]])).start()
    bench.step()
    bench.show()
    bench.until(lambda: stops(bench), "the stop action")
    assert "not finite in ['y']" in bench.report().stop_reason
    bench.step()
    assert all(command.twist.linear.y == 0.0 for command in bench.commands)


def test_a_model_that_hangs_is_stopped_in_time_and_its_late_answer_dropped(make):
    go_on = threading.Event()
    bench = make(ScriptedPolicy(before=lambda call: go_on.wait(20) if call == 1 else None)).start()
    bench.step()
    assert bench.set("control.inference_timeout_s", 0.2).successful
    started_s = time.monotonic()
    bench.show()
    bench.until(lambda: stops(bench), "the stop action")
    assert time.monotonic() - started_s < 15.0  # not the 20 s that the model would take
    assert "control.inference_timeout_s is 0.2" in bench.report().stop_reason
    assert bench.set("gate.delta", 0.75).successful  # the node answers all the while
    assert bench.set("control.inference_timeout_s", 10.0).successful
    go_on.set()
    bench.spin(0.2)
    assert len(bench.gates) == 1
    gate = bench.step()
    assert (gate.reason, gate.delta) == ("inference_timeout", 0.75)


def test_an_emergency_stop_holds_until_reset(make):
    bench = make().start()
    bench.step()
    bench.emergency_stop.publish(Bool(data=False))
    bench.step()
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: stops(bench), "the stop action")
    bench.emergency_stop.publish(Bool(data=False))
    gates = len(bench.gates)
    for _ in range(3):
        bench.show()
        bench.spin(0.05)
    assert len(bench.gates) == gates
    assert len(stops(bench)) == 1
    status = bench.report()
    assert (status.state, status.stops) == ("stopped", 1)
    assert status.stop_reason.startswith("emergency_stop")
    answer = bench.call(bench.reset, Trigger.Request())
    assert (answer.success, answer.message) == (True, "emergency stop released, memory emptied")
    assert bench.step().decision == GateStatus.INFER


def test_a_press_while_a_reset_is_under_way_holds(make, monkeypatch):
    bench = make().start()
    bench.step()
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: stops(bench), "the stop action")
    worker = bench.node._runner.worker
    reset = worker.reset

    def pressed_meanwhile() -> None:
        bench.emergency_stop.publish(Bool(data=True))
        wait(lambda: bench.node._emergency.pressed, "the press")
        reset()

    monkeypatch.setattr(worker, "reset", pressed_meanwhile)
    bench.call(bench.reset, Trigger.Request())
    bench.show()
    bench.spin(0.2)
    assert len(bench.gates) == 1
    assert bench.report().stop_reason.startswith("emergency_stop")


def test_a_button_that_bounces_stops_the_robot_while_a_picture_is_decoded(make, monkeypatch):
    """It has a thread of its own, however long a picture takes; the command is on its way before that ends."""
    bench = make().start()
    bench.step()

    def decode(message):
        for _ in range(1000):  # at 100 Hz
            for pressed in (True, False):
                bench.emergency_stop.publish(Bool(data=pressed))
                time.sleep(0.005)
            if bench.node._runner.stops:
                return decode_image(message)
        raise ObservationError("nothing stopped the robot")

    monkeypatch.setattr(inputs, "decode_image", decode)
    bench.show()
    bench.until(lambda: stops(bench), "the stop action")
    bench.spin(0.2)
    assert len(bench.gates) == 1
    status = bench.report()
    assert status.stop_reason.startswith("emergency_stop")
    assert status.rejected == 0


def test_an_emergency_stop_has_a_participant_of_its_own_in_the_same_enclave(make):
    bench = make(enclave="/flashvla").start()

    def participant(topic: str) -> bytes:
        (reader,) = bench.robot.get_subscriptions_info_by_topic(topic)
        return bytes(reader.endpoint_gid[:12])

    def enclaves() -> list[str]:
        return [enclave for *_, enclave in bench.robot.get_node_names_and_namespaces_with_enclaves()]

    bench.until(lambda: len(enclaves()) == 3, "the node, its stop and the robot")
    assert participant(interfaces.EMERGENCY_STOP.name) != participant(interfaces.IMAGE.name)
    assert set(enclaves()) == {"/flashvla"}


def test_a_press_whose_stop_raised_leaves_the_next_one_heard(make, monkeypatch):
    bench = make().start()
    bench.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory for a message")

    with monkeypatch.context() as patch:
        patch.setattr(bench.node._runner.worker, "stop", fail)
        bench.emergency_stop.publish(Bool(data=True))
        bench.log_line("no memory for a message")
    bench.call(bench.reset, Trigger.Request())
    bench.step()
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: stops(bench), "the stop action")


@pytest.mark.parametrize("configured", [True, False])
def test_an_emergency_stop_before_activation_holds_too(make, configured):
    bench = make()
    if configured:
        assert bench.configure()
    bench.until(bench.emergency_stop.get_subscription_count, "the listener")
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: bench.logged("emergency stop"), "the stop")
    if configured:
        bench.node.trigger_cleanup()
    bench.start()
    bench.show()
    bench.spin(0.2)
    assert not bench.commands
    assert bench.report().state == "stopped"
    bench.call(bench.reset, Trigger.Request())
    bench.step()


def test_deactivation_stops_the_robot_and_silences_the_node(make):
    bench = make().start()
    bench.step()
    bench.node.trigger_deactivate()
    bench.until(lambda: stops(bench), "the stop action")
    status = bench.report()
    assert (status.state, status.stop_reason) == ("stopped", "deactivated: deactivated")
    commands = len(bench.commands)
    bench.show()
    bench.spin(0.1)
    assert len(bench.commands) == commands


def test_deactivation_does_not_wait_for_a_model_that_hangs(make):
    policy = HeldPolicy()
    bench = make(policy).start()
    bench.step()
    bench.show()
    bench.until(policy.entered.is_set, "the model")
    started_s = time.monotonic()
    bench.node.trigger_deactivate()
    assert time.monotonic() - started_s < 30
    bench.until(lambda: stops(bench), "the stop action")
    policy.go_on.set()
    bench.spin(0.1)
    assert len(bench.gates) == 1


def test_the_stop_action_none_is_silence(make):
    bench = make(control__stop_action="none").start()
    bench.step()
    bench.node.trigger_deactivate()
    bench.spin(0.2)
    assert len(bench.commands) == 1


def test_an_absolute_joint_stops_where_it_is(make):
    bench = make(
        ScriptedPolicy(actions=[[0.5]]),
        command__type="Float64MultiArray",
        action__names=["elbow"],
        action__kinds=["absolute"],
    ).start()
    bench.measure(elbow=0.25)
    bench.step()
    bench.node.trigger_deactivate()
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    assert list(bench.commands[1].data) == [0.25]


def image(encoding: str = "rgb8", height: int = 4, width: int = 4, step: int = 12, size: int = 48) -> Image:
    message = Image(encoding=encoding, height=height, width=width, step=step)
    message.data = array.array("B", bytes(size))
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (image(encoding="16UC1"), "image encoding '16UC1' is not one of rgb8, bgr8"),
        (image(encoding=""), "image encoding '' is not one of"),
        (image(height=0, size=0), "an image must have pixels, got 4 x 0"),
        (image(size=47), "has 48 bytes, but only 47 came: it is truncated"),
        (image(step=11), "12 bytes, but the image's step is 11"),
        (Image(header=Header(stamp=Time(sec=-1))), "s old by its stamp (control.max_image_age_s is 60)"),
    ],
)
def test_a_bad_image_is_one_clear_error_and_the_robot_stays_safe(make, message, words):
    bench = make(control__image_timeout_s=0.3).start()
    bench.step()
    for _ in range(3):
        bench.image.publish(message)
        bench.spin(0.03)
    assert bench.log_line(words) == bench.log_line("camera image: ")
    bench.until(lambda: stops(bench), "the stop action: a rejected image does not keep the camera alive")
    assert 1 <= bench.report().rejected <= 3  # the newest image wins over one that waits
    bench.step()


def test_an_image_with_padded_rows_is_as_good_as_any(make):
    bench = make().start()
    bench.image.publish(image(step=20, size=80))
    bench.until(lambda: bench.gates, "the step")
    assert bench.report().rejected == 0


@pytest.mark.parametrize(
    ("text", "words"), [("", "must not be empty"), (" \n", "must not be empty"), ("x" * 10_000, "got 10000: 'xxx")]
)
def test_a_bad_instruction_is_one_clear_error_and_the_old_one_stays(make, text, words):
    bench = make().start()
    bench.step()
    for _ in range(3):
        bench.say(text)
    assert bench.log_line(words) == bench.log_line("an instruction must")
    assert len(bench.log_line(words)) < 200
    gate = bench.step()
    assert gate.instruction == "open the drawer"
    assert bench.report().rejected == 3


def test_without_an_instruction_nothing_moves_and_the_status_says_why(make):
    bench = make()
    assert bench.activate()
    bench.show()
    bench.spin(0.1)
    assert not bench.commands
    assert bench.report().state == "waiting"
    assert "no instruction yet on /instruction" in bench.diagnostics[-1].status[0].message
    bench.say("open the drawer")
    bench.step()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (JointState(name=["a", "b"], position=[1.0]), "joint_states: 2 names but 1 positions"),
        (JointState(name=["a", "x"], position=[1.0, NAN]), "joint_states: the positions of ['x'] are not finite"),
    ],
)
def test_bad_joint_states_are_rejected(make, message, words):
    bench = make().start()
    bench.until(bench.joint_states.get_subscription_count, "the reader")
    bench.joint_states.publish(message)
    bench.until(lambda: bench.logged(words), "the error")
    bench.step()
