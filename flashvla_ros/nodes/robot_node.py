"""The simulated robot as a ROS 2 node: a camera, joints and a driver behind the topics that a real robot has.

Free-running, it steps at its own rate with the last command it has, as a real robot does, so the model's latency
counts. In lock-step it publishes simulated time and one image, and waits for the command that carries the image's
stamp, so a run repeats exactly.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64, Header, String
from std_srvs.srv import Trigger

from flashvla_ros.core.types import FloatArray, ImageArray
from flashvla_ros.messages.images import encode_image
from flashvla_ros.msg import EpisodeStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.parameters import describe, given_at_start
from flashvla_ros.nodes.process import StoppableNode, leave, run_node
from flashvla_ros.sim.episode import Episode, EpisodePlan, action_from_command
from flashvla_ros.sim.libero.protocol import CAMERAS
from flashvla_ros.sim.settings import ROBOT_PARAMETERS, RobotSettings

RESEND_S = 2.0  # an image without an answer is published again after this long in lock-step
SETTLE_S = 0.05  # given to the policy in lock-step to take in an instruction before the image that goes with it
RESET_TIMEOUT_S = 5.0  # longest wait for the policy's reset service between episodes
NANOSECONDS = 10**9


class Phase(enum.Enum):
    """What the node is waiting for."""

    CONNECTING = "a policy that reads images and sends commands"
    RESETTING = "the policy's reset"
    STARTING = "the first command of the episode"
    RUNNING = "the next tick or command"
    FINISHED = "nothing"


class RobotNode(StoppableNode):
    """Wires an :class:`Episode` to topics; it has finished once the last episode has ended.

    Attributes:
        settings: The parameters.
    """

    def __init__(self, **options: Any) -> None:
        """Open the topics; `options` are those of :class:`rclpy.node.Node`.

        Raises:
            SettingsError: A parameter is unknown, of the wrong type or out of its range.
            SimulationError: The simulation cannot run on this machine.
        """
        # Both import MuJoCo, and run_node tells in one line where it is missing.
        from flashvla_ros.nodes.robot_frames import RobotFrames
        from flashvla_ros.sim.world import make_world

        super().__init__("robot", **options)
        self.settings = settings = _settings(self)
        self._world = make_world(settings.task, settings.image_size, settings.render, settings.cameras)
        self._tick_s = 1.0 / settings.rate_hz
        self._phase = Phase.CONNECTING
        self._index, self._reset_deadline = 0, 0.0
        self._episode: Episode | None = None
        self._reset: Future[Any] | None = None
        self._pixels: dict[str, ImageArray] = {}
        self._sim_time_ns = NANOSECONDS
        self._stamp_ns = self._first_stamp_ns = 0  # of the last image, and of the first one of the episode
        self._velocity: FloatArray = np.zeros(self._world.axes)
        self._gripper = -1.0
        self._answered = self._gripper_answered = self._answered_once = self._pressed = False
        self._by_hand = ""  # an instruction from outside, which stays until the next one
        self._own: collections.Counter[str] = collections.Counter()  # instructions that come back to this node
        self._published_at = self._command_at = time.monotonic()
        self._frames = RobotFrames(self)
        self._open_topics()

    def _open_topics(self) -> None:
        cameras = CAMERAS if self.settings.cameras > 1 else [self.settings.camera]
        topics = {name: f"{name}/image" if name else "image" for name in cameras}
        self._images = {
            name: self.create_publisher(Image, topic, interfaces.IMAGE.qos) for name, topic in topics.items()
        }
        self._joints = self.create_publisher(JointState, interfaces.JOINT_STATES.name, interfaces.JOINT_STATES.qos)
        self._instructions = self.create_publisher(String, interfaces.INSTRUCTION.name, interfaces.INSTRUCTION.qos)
        self.create_subscription(String, interfaces.INSTRUCTION.name, self._on_instruction, interfaces.INSTRUCTION.qos)
        self._events = self.create_publisher(EpisodeStatus, interfaces.EPISODE.name, interfaces.EPISODE.qos)
        self._commands = self.create_subscription(
            TwistStamped, interfaces.COMMAND.name, self._on_command, interfaces.COMMAND.qos
        )
        self._grippers = self.create_subscription(
            Float64, interfaces.GRIPPER_COMMAND.name, self._on_gripper, interfaces.GRIPPER_COMMAND.qos
        )
        button = interfaces.EMERGENCY_STOP
        self.create_subscription(Bool, button.name, self._on_emergency_stop, button.qos)
        self._reset_client: Client[Any, Any] = self.create_client(Trigger, f"{self.settings.policy}/reset")
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self._tick_s, self._tick, clock=steady)
        self.create_timer(1.0, self._publish_instruction, clock=steady)
        if self.settings.lock_step:
            self._clock_publisher = self.create_publisher(ClockMessage, "/clock", QoSProfile(depth=10))

    # What happens at every tick of the wall clock.

    def _tick(self) -> None:
        if self._phase is Phase.CONNECTING:
            if self._connected():
                self._begin_episode()
        elif self._phase is Phase.RESETTING:
            if self._reset is None or self._reset.done() or time.monotonic() > self._reset_deadline:
                self._begin_episode()
        elif self._episode is not None and self._phase is not Phase.FINISHED:
            patience_s = self.settings.answer_timeout_s if self._answered_once else self.settings.start_timeout_s
            if time.monotonic() - self._command_at > patience_s:
                self._end_episode(self._episode, f"no command for {patience_s:g} s")
            elif self.settings.lock_step:
                self._resend()
            else:
                self._free_step()

    def _connected(self) -> bool:
        readers = all(publisher.get_subscription_count() for publisher in self._images.values())
        writers = self._commands.get_publisher_count()
        return bool(readers and writers and self._grippers.get_publisher_count())

    # Episodes.

    def _begin_episode(self) -> None:
        plan = EpisodePlan.from_settings(self.settings, self._index)
        if self._by_hand:
            plan = dataclasses.replace(plan, instruction=self._by_hand, switch_instruction="", switch_step=0)
        self.loading = True  # the first episode of a task of LIBERO compiles its scene
        episode = self._episode = Episode(self._world, plan)
        self.loading = False
        self._velocity, self._gripper = np.zeros(self._world.axes), -1.0
        self._phase, self._pressed = Phase.STARTING, False
        self._command_at = time.monotonic()
        self._announce_instruction(episode, EpisodeStatus.STARTED)
        self._pixels = self._world.images()
        self._publish_frame()
        self._first_stamp_ns = self._stamp_ns

    def _advance(self, velocity: FloatArray, gripper: float) -> None:
        """Move the robot by one control step, show it, and say what came of it."""
        episode = self._episode
        if episode is None:
            return
        if episode.step(action_from_command(velocity, gripper, self._tick_s, self._world.unit)):
            self._announce_instruction(episode, EpisodeStatus.CHANGED)
        if episode.ended:
            self._end_episode(episode)
        else:
            self._pixels = self._world.images()
            self._publish_frame()

    def _on_instruction(self, message: String) -> None:
        """Take over an instruction that somebody else has sent."""
        if self._own[message.data]:
            self._own[message.data] -= 1
            return
        self._by_hand = message.data
        if self._episode is not None and self._phase in (Phase.STARTING, Phase.RUNNING):
            self.get_logger().info(f"told by hand: {message.data!r}; it stays")
            self._episode.tell(message.data)
            self._publish_instruction()  # the old one may just have gone out again
            self._publish_event(self._episode, EpisodeStatus.CHANGED)

    def _end_episode(self, episode: Episode, error: str = "") -> None:
        outcome = error or ("success" if episode.success else "no success")
        self.get_logger().info(f"episode {self._index}, {episode.instruction!r}: {outcome}, {episode.steps} steps")
        self._publish_event(episode, EpisodeStatus.ENDED, error)
        self._index += 1
        if self.settings.episodes and self._index >= self.settings.episodes:
            self._events.wait_for_all_acked(Duration(seconds=2))
            self._phase = Phase.FINISHED
            self.finished = True
        elif error:
            self._phase = Phase.CONNECTING
        elif self._reset_client.service_is_ready() and not (self._pressed and self._still):
            self._reset = self._reset_client.call_async(Trigger.Request())
            self._reset_deadline = time.monotonic() + RESET_TIMEOUT_S
            self._phase = Phase.RESETTING
        else:
            self._begin_episode()

    # Free-running.

    def _free_step(self) -> None:
        if self._phase is Phase.STARTING:
            self._publish_frame()
            return
        self._advance(np.zeros_like(self._velocity) if self._still else self._velocity, self._gripper)

    @property
    def _still(self) -> bool:
        """Whether the last command is too old to be followed."""
        return time.monotonic() - self._command_at > self.settings.command_timeout_s

    def _on_emergency_stop(self, message: Bool) -> None:
        self._pressed |= message.data  # in this episode: whoever pressed it releases it

    def _on_command(self, message: TwistStamped) -> None:
        stamp = Time.from_msg(message.header.stamp).nanoseconds
        if self._phase not in (Phase.STARTING, Phase.RUNNING) or stamp < self._first_stamp_ns:
            return  # the answer to an image of the episode before
        linear, angular = message.twist.linear, message.twist.angular
        if self.settings.lock_step and stamp != self._stamp_ns:
            return
        self._answered = self._answered_once = True
        self._velocity = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])[: self._world.axes]
        self._command_at = time.monotonic()
        self._phase = Phase.RUNNING
        self._lock_step()

    def _on_gripper(self, message: Float64) -> None:
        self._gripper = message.data
        self._gripper_answered = self._phase in (Phase.STARTING, Phase.RUNNING)  # a reset's stop answers no image
        self._lock_step()

    # Lock-step.

    def _lock_step(self) -> None:
        if self.settings.lock_step and self._answered and self._gripper_answered:
            self._sim_time_ns += round(self._tick_s * NANOSECONDS)
            self._advance(self._velocity, self._gripper)

    def _resend(self) -> None:
        if time.monotonic() - self._published_at < RESEND_S:
            return
        if self._phase is Phase.RUNNING:
            self.get_logger().warning("no answer to an image; it is sent again, and this run may not repeat exactly")
        self._publish_frame()

    # Messages.

    def _now_ns(self) -> int:
        return self._sim_time_ns if self.settings.lock_step else self.get_clock().now().nanoseconds

    def _publish_frame(self) -> None:
        self._stamp_ns = self._now_ns()
        self._answered = self._gripper_answered = False
        self._published_at = time.monotonic()
        stamp = Time(nanoseconds=self._stamp_ns).to_msg()
        if self.settings.lock_step:
            self._clock_publisher.publish(ClockMessage(clock=stamp))
        joints, header = self._world.scene.joint_positions, Header(stamp=stamp, frame_id="base_link")
        self._joints.publish(JointState(header=header, name=[*joints], position=[*joints.values()]))
        self._frames.publish(self._world, stamp)
        pictures = list(zip(self._images.items(), self._pixels.values(), strict=True))
        for (name, publisher), picture in reversed(pictures):  # the first camera's image asks for the command
            publisher.publish(encode_image(picture, Header(stamp=stamp, frame_id=name or "camera")))

    def _announce_instruction(self, episode: Episode, event: int) -> None:
        self._publish_instruction()
        self._publish_event(episode, event)
        if self.settings.lock_step:
            self._instructions.wait_for_all_acked(Duration(seconds=1))
            time.sleep(SETTLE_S)

    def _publish_instruction(self) -> None:
        if self._episode is not None and self._phase is not Phase.CONNECTING:
            self._own[self._episode.instruction] += 1
            self._instructions.publish(String(data=self._episode.instruction))

    def _publish_event(self, episode: Episode, event: int, error: str = "") -> None:
        self._events.publish(
            EpisodeStatus(
                header=Header(stamp=Time(nanoseconds=self._now_ns()).to_msg()),
                event=event,
                task=episode.plan.task.name,
                instruction=episode.instruction,
                episode=self._index,
                seed=episode.plan.seed,
                success=episode.success,
                steps=episode.steps,
                error=error,
            )
        )

    def close(self, why: str) -> None:
        """Free the OpenGL contexts; the node is destroyed next."""
        self.get_logger().info(f"the robot stops: {why}")
        self._world.close()


def _settings(node: Node) -> RobotSettings:
    """Declare the robot's parameters and return their values at start."""
    rows = {row.name: row for row in ROBOT_PARAMETERS}
    given = given_at_start(node, rows)
    values = {name: row.parse(given.get(name, row.default)) for name, row in rows.items()}
    for name, row in rows.items():
        node.declare_parameter(name, values[name], describe(row), ignore_override=True)
    return RobotSettings(**values)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> int:
    """Run the robot until its episodes are over or it is told to stop, and return the exit code."""
    return run_node(RobotNode, arguments)


if __name__ == "__main__":
    leave(main())
