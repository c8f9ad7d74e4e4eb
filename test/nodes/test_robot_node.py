"""The robot node over real DDS, driven by a policy that repeats what the expert would do."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64, String
from std_srvs.srv import Trigger

from flashvla_ros.core.errors import SettingsError, SimulationError
from flashvla_ros.messages.images import decode_image
from flashvla_ros.msg import EpisodeStatus
from flashvla_ros.nodes import interfaces

try:
    from flashvla_ros.nodes import robot_node
    from flashvla_ros.nodes.robot_node import Episode, RobotNode
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.timeout(300)  # a renderer, and processes, on a machine with other work
PATIENCE_S = 120.0


class Driver(Node):
    """A policy of one line: lowers the hand, and answers every image unless told to be silent."""

    def __init__(self, context: Context) -> None:
        super().__init__("flashvla", context=context)
        self.silent = False
        self.resets = 0
        self.images: list[tuple[int, np.ndarray]] = []
        self.events: list[EpisodeStatus] = []
        self.instructions: list[str] = []
        self.joints: list[JointState] = []
        self.clocks: list[int] = []
        self.command = self.create_publisher(TwistStamped, "command", interfaces.COMMAND.qos)
        self.gripper = self.create_publisher(Float64, "gripper_command", interfaces.GRIPPER_COMMAND.qos)
        self.create_subscription(String, "instruction", lambda m: self.instructions.append(m.data), 10)
        self.create_subscription(JointState, "joint_states", self.joints.append, interfaces.JOINT_STATES.qos)
        self.create_subscription(Clock, "/clock", lambda m: self.clocks.append(nanoseconds(m.clock)), 10)
        self.create_subscription(Image, "image", self.answer, interfaces.IMAGE.qos)
        self.create_subscription(EpisodeStatus, "episode", self.events.append, interfaces.EPISODE.qos)
        self.create_service(Trigger, "~/reset", self.reset)

    def answer(self, message: Image) -> None:
        self.images.append((nanoseconds(message.header.stamp), decode_image(message).copy()))
        if self.silent:
            return
        # Depends on what it sees, so that a run only repeats when every image does.
        brightness = float(self.images[-1][1].mean()) / 255.0
        command = TwistStamped(header=message.header)
        command.twist.linear.z = -0.05
        command.twist.linear.x = 0.1 * (brightness - 0.4)
        self.gripper.publish(Float64(data=1.0))
        self.command.publish(command)

    def reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.resets += 1
        self.gripper.publish(Float64(data=1.0))  # as the policy node's stop does, before the answer
        time.sleep(0.05)
        response.success = True
        return response

    def ended(self) -> list[EpisodeStatus]:
        return [event for event in self.events if event.event == EpisodeStatus.ENDED]


def nanoseconds(stamp: Any) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


class Stage:
    """A robot and a driver in one process, connected by DDS."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.driver = Driver(self.context)
        self.executor.add_node(self.driver)
        self.robot: RobotNode | None = None

    def start(self, **parameters: Any) -> RobotNode:
        overrides = [Parameter(name, value=value) for name, value in {"image_size": 32, **parameters}.items()]
        self.robot = RobotNode(context=self.context, parameter_overrides=overrides)
        self.executor.add_node(self.robot)
        return self.robot

    def spin(self, until: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, f"waited {seconds} s; events: {self.driver.events}"
            self.executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        self.executor.shutdown()
        for node in (self.robot, self.driver):
            if node is not None:
                node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def stage() -> Iterator[Stage]:
    opened = Stage()
    yield opened
    opened.close()


def run_lock_step(stage: Stage, **parameters: Any) -> Driver:
    robot = stage.start(lock_step=True, episodes=1, max_steps=12, **parameters)
    stage.spin(lambda: robot.finished)
    stage.spin(lambda: bool(stage.driver.ended()))
    return stage.driver


def test_lock_step_repeats_exactly(stage: Stage, request: pytest.FixtureRequest) -> None:
    first = run_lock_step(stage, seed=3)
    second_stage = Stage()
    request.addfinalizer(second_stage.close)
    second = run_lock_step(second_stage, seed=3)

    assert len(first.images) == 12
    assert [stamp for stamp, _ in first.images] == [stamp for stamp, _ in second.images]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first.images, second.images, strict=True))
    assert not np.array_equal(first.images[0][1], first.images[-1][1])  # it did move
    assert np.unique(np.diff([stamp for stamp, _ in first.images])).tolist() == [100_000_000]
    assert {stamp for stamp, _ in first.images} <= set(first.clocks)
    assert [event.event for event in first.events] == [EpisodeStatus.STARTED, EpisodeStatus.ENDED]
    assert first.events[-1].steps == 12
    assert not first.events[-1].success
    assert first.events[-1].error == ""


def test_an_episode_begins_as_what_a_signal_interrupts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    loading: list[bool] = []

    def begun(*given: Any) -> Episode:
        loading.append(stage.robot is not None and stage.robot.loading)
        return Episode(*given)

    monkeypatch.setattr(robot_node, "Episode", begun)
    run_lock_step(stage)
    assert loading == [True]
    assert stage.robot is not None and not stage.robot.loading


def test_instruction_changes_in_the_middle(stage: Stage) -> None:
    driver = run_lock_step(stage, switch_instruction="close the drawer", switch_step=5)
    changed = next(event for event in driver.events if event.event == EpisodeStatus.CHANGED)
    assert changed.steps == 5
    assert changed.instruction == "close the drawer"
    # From the drawer's closed start the new instruction is already accomplished, and must still hold for some steps.
    assert driver.ended()[0].success
    assert list(dict.fromkeys(driver.instructions)) == ["open the drawer", "close the drawer"]


def test_silence_ends_the_episode_with_an_error(stage: Stage) -> None:
    stage.driver.silent = True
    robot = stage.start(lock_step=True, episodes=2, start_timeout_s=1.5, answer_timeout_s=2.0)
    stage.spin(lambda: bool(stage.driver.ended()))
    first = stage.driver.ended()[0]
    assert (first.error, first.steps) == ("no command for 1.5 s", 0)

    stage.driver.silent = False
    stage.driver.images.clear()
    stage.spin(lambda: len(stage.driver.images) > 3)
    stage.driver.silent = True
    stage.spin(lambda: robot.finished and len(stage.driver.ended()) == 2)
    second = stage.driver.ended()[1]
    assert second.error == "no command for 2 s"
    assert second.steps >= 3


def test_free_running_waits_for_the_first_command_and_stands_still_without_one(stage: Stage) -> None:
    stage.driver.silent = True
    stage.start(rate_hz=20.0, command_timeout_s=0.1, max_steps=500)
    stage.spin(lambda: len(stage.driver.images) > 5)
    assert stage.robot is not None
    assert stage.robot._episode is not None
    assert stage.robot._episode.steps == 0

    stage.driver.silent = False
    stage.spin(lambda: stage.robot._episode.steps > 10)
    stage.driver.silent = True
    steps = stage.robot._episode.steps
    stage.spin(lambda: stage.robot._episode.steps > steps + 15)
    hand = stage.robot._world.scene.state.hand
    stage.spin(lambda: stage.robot._episode.steps > steps + 20)
    np.testing.assert_allclose(stage.robot._world.scene.state.hand, hand, atol=3e-3)  # 12 mm if it still moved


def test_the_policy_is_reset_between_episodes(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    robot = stage.start(episodes=3, max_steps=3, rate_hz=50.0, task="drawer-close", seed=7)
    stage.spin(lambda: robot.finished)
    stage.spin(lambda: len(stage.driver.ended()) == 3)
    assert stage.driver.resets == 2
    assert [event.seed for event in stage.driver.ended()] == [7, 8, 9]
    told, log = "'close the drawer': no success, 3 steps", capfd.readouterr().err
    assert all(f"episode {index}, {told}" in log for index in range(3))
    assert {event.task for event in stage.driver.events} == {"drawer-close"}
    stage.spin(lambda: bool(stage.driver.joints))
    assert "right_j0" in stage.driver.joints[0].name


def test_the_robot_does_not_release_an_emergency_stop(stage: Stage) -> None:
    robot = stage.start(episodes=2, max_steps=40, rate_hz=20.0, command_timeout_s=0.1, answer_timeout_s=1.0)
    stage.spin(lambda: len(stage.driver.images) > 3)
    stage.driver.silent = True  # as a policy is, once stopped
    stage.driver.create_publisher(Bool, "emergency_stop", interfaces.EMERGENCY_STOP.qos).publish(Bool(data=True))
    stage.spin(lambda: robot.finished and len(stage.driver.ended()) == 2)
    assert stage.driver.resets == 0


def test_a_stop_between_episodes_is_no_step_of_the_next_one(stage: Stage) -> None:
    robot = stage.start(lock_step=True, episodes=3, max_steps=2, task="drawer-close")
    stage.spin(lambda: robot.finished)
    stage.spin(lambda: len(stage.driver.ended()) == 3)
    assert [(event.episode, event.steps) for event in stage.driver.ended()] == [(0, 2), (1, 2), (2, 2)]


def test_late_joiners_hear_the_instruction_and_the_events(stage: Stage) -> None:
    stage.start(max_steps=500)
    stage.spin(lambda: len(stage.driver.images) > 1)
    late = Driver(stage.context)
    late.silent = True
    stage.executor.add_node(late)
    stage.spin(lambda: bool(late.instructions and late.events))
    late.destroy_node()
    assert late.events[0].event == EpisodeStatus.STARTED
    assert late.instructions == ["open the drawer"]


def test_an_instruction_sent_by_hand_stays(stage: Stage) -> None:
    robot = stage.start(max_steps=15, episodes=2, rate_hz=20.0)
    stage.spin(lambda: len(stage.driver.images) > 3 and bool(stage.driver.instructions))
    hand = stage.driver.create_publisher(String, "instruction", interfaces.INSTRUCTION.qos)
    stage.spin(lambda: hand.get_subscription_count() == 2)
    hand.publish(String(data="close the drawer"))
    stage.spin(lambda: robot.finished and len(stage.driver.ended()) == 2)
    assert {event.instruction for event in stage.driver.ended()} == {"close the drawer"}
    told = list(dict.fromkeys(stage.driver.instructions))
    assert told == ["open the drawer", "close the drawer"]
    after = stage.driver.instructions.index("close the drawer")
    assert "open the drawer" not in stage.driver.instructions[after:]


def test_the_robot_says_what_it_is_and_where_its_hand_is(stage: Stage) -> None:
    descriptions: list[String] = []
    poses: list[PoseStamped] = []
    stage.start(max_steps=500)
    stage.spin(lambda: len(stage.driver.images) > 1)
    description, pose = interfaces.ROBOT_DESCRIPTION, interfaces.END_EFFECTOR_POSE
    stage.driver.create_subscription(String, description.name, descriptions.append, description.qos)
    stage.driver.create_subscription(PoseStamped, pose.name, poses.append, pose.qos)
    stage.spin(lambda: bool(descriptions and poses))
    assert 'link name="right_l6"' in descriptions[0].data
    assert poses[0].header.frame_id == "base_link"
    assert stage.robot is not None
    hand = stage.robot._world.scene.state.hand
    place = poses[-1].pose.position
    assert np.linalg.norm(np.array([place.x, place.y, place.z]) - hand) < 0.1  # the hand, not its finger tips


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("task", "drawer-shut", "task: there is no task"),
        ("rate_hz", 0.0, "rate_hz must be from 0.1 to 200"),
        ("image_size", 4, "image_size must be from 16 to 1024"),
        ("sed", 3, "did you mean seed"),
    ],
)
def test_bad_parameters_are_refused(stage: Stage, parameter: str, value: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        stage.start(**{parameter: value})


_RUN = "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[1].split()))\n"
_RUN += "sys.argv[1:2] = []; runpy.run_module('flashvla_ros.nodes.robot_node', run_name='__main__')"


@contextlib.contextmanager
def running(*arguments: str, missing: str = "") -> Iterator[subprocess.Popen[str]]:
    """A robot node in a process of its own, which ends with the test: another one may get its domain."""
    command = [sys.executable, "-c", _RUN, missing, "--ros-args", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_cleanly(stage: Stage, number: int) -> None:
    with running("-p", "image_size:=32") as process:  # real signals need one
        stage.spin(lambda: bool(stage.driver.images))
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "missing", "words"),
    [
        (("-p", "task:=fly"), "", "task: there is no task"),
        (("--params-file", "missing.yaml"), "", "missing.yaml"),
        ((), "metaworld", "MuJoCo cannot start"),
        ((), "mujoco", "install the simulation with `pip install"),
    ],
)
def test_a_bad_argument_or_a_missing_library_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], missing: str, words: str
) -> None:
    with running(*arguments, missing=missing) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert words in output
    assert len(output.splitlines()) == 1
    assert "Traceback" not in output
