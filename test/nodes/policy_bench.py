"""A policy node on a bench: real rclpy and DDS around it, a scripted policy inside, one thread spins everything."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from fakes import ScriptedPolicy
from lifecycle_msgs.srv import GetState
from rcl_interfaces.msg import Log, SetParametersResult
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64, Header, String
from std_srvs.srv import Trigger

from flashvla_ros.core.policy import Policy
from flashvla_ros.messages.images import encode_compressed, encode_image
from flashvla_ros.msg import GateStatus, PolicyStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.policy_node import PolicyNode
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory

TASK = "open the drawer"
CALM = {
    "control__frozen_image_s": 0.0,  # most tests show one grey picture
    "control__image_timeout_s": 30.0,  # and a machine with other work may take its time
    "control__inference_timeout_s": 30.0,
    "control__max_image_age_s": 60.0,
    "control__state_timeout_s": 30.0,
}
PATIENCE_S = 60.0  # for what takes milliseconds on an idle machine
_LOG_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def wait(condition: Callable[[], Any], what: str) -> None:
    """Wait for what happens without a message being taken."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come"
        time.sleep(0.005)


class PolicyBench:
    """Publishes what a robot publishes and collects what the node says.

    Messages of two topics arrive in any order. So whatever is waited for, steps, commands and gripper commands that
    the node had published by then are waited for too: a test may look at all of them.

    Args:
        policy: The model inside; a scripted one where it is None.
        factory: Instead of `policy`: how the node comes by it.
        files: Parameter files.
        namespace: Of the node.
        enclave: Of SROS 2.
        remap: A topic under another name, such as ``image:=/camera/image_raw``; nothing by default.
        parameters: Values at start; ``__`` stands for the dot, as in ``gate__delta=0.9``. Those of :data:`CALM` unless
            they say otherwise.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        factory: PolicyFactory | None = None,
        files: Sequence[Path] = (),
        namespace: str = "",
        enclave: str = "/",
        remap: str = "",
        **parameters: Any,
    ) -> None:
        self.context = Context()
        arguments = [word for path in files for word in ("--params-file", str(path))] + (["-r", remap] if remap else [])
        rclpy.init(context=self.context, args=["--ros-args", "--enclave", enclave, *arguments])
        self.policy = policy or ScriptedPolicy()
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in {**CALM, **parameters}.items()]
        self.node = PolicyNode(
            factory or PolicyFactory(lambda _: LoadedPolicy(self.policy)),
            context=self.context,
            namespace=namespace,
            parameter_overrides=overrides,
        )
        self._name = self.node.get_fully_qualified_name()
        self._began = self.node.get_clock().now()
        self.robot = Node("robot", context=self.context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._executor.add_node(self.robot)
        self.logs: list[Log] = []
        self.gates: list[GateStatus] = []
        self.statuses: list[PolicyStatus] = []
        self.commands: list[Any] = []
        self.grippers: list[Float64] = []
        self.diagnostics: list[Any] = []
        self._received = {
            self.node.resolve_topic_name(topic.name): received
            for topic, received in (
                (interfaces.GATE, self.gates),
                (interfaces.STATUS, self.statuses),
                (interfaces.GRIPPER_COMMAND, self.grippers),
                (interfaces.DIAGNOSTICS, self.diagnostics),
                (interfaces.COMMAND, self.commands),
            )
        }
        self._published: Counter[str] = Counter()
        self._parameters = AsyncParameterClient(self.robot, self._name)
        self.robot.create_subscription(Log, "/rosout", self.logs.append, _LOG_QOS)
        self.cameras = {
            camera: self.robot.create_publisher(topic.type, topic.name, topic.qos)
            for camera, topic in interfaces.image_topics(self.node.settings.camera).items()
        }
        self.image = next(iter(self.cameras.values()))
        self.instruction = self.robot.create_publisher(String, "instruction", 10)
        self.joint_states = self.robot.create_publisher(interfaces.JOINT_STATES.type, "joint_states", 1)
        self.emergency_stop = self.robot.create_publisher(Bool, "emergency_stop", 10)
        self.pose = self.robot.create_publisher(interfaces.END_EFFECTOR_POSE.type, "end_effector_pose", 1)
        self.reset = self.robot.create_client(Trigger, f"{self._name}/reset")
        self.get_state = self.robot.create_client(GetState, f"{self._name}/get_state")

    def configure(self) -> bool:
        """Trigger configure; returns whether it succeeded, and then listens to every topic."""
        if self.node.trigger_configure() is not TransitionCallbackReturn.SUCCESS:
            return False
        # No spinning before each publisher has its reader and is counted: nothing is published that nobody gets.
        listening = {subscription.topic_name for subscription in self.robot.subscriptions}
        for publisher in self.node.publishers:
            topic = publisher.topic_name
            if topic in self._received:
                if topic not in listening:
                    self.robot.create_subscription(publisher.msg_type, topic, self._received[topic].append, 100)
                wait(publisher.get_subscription_count, f"a reader of {topic}")
                self._count(publisher, topic)
        for publisher in (self.instruction, self.emergency_stop, *self.cameras.values()):
            wait(publisher.get_subscription_count, f"the node's reader of {publisher.topic_name}")
        return True

    def activate(self) -> bool:
        """Configure if need be and trigger activate; returns whether it succeeded."""
        if self.state() == "unconfigured" and not self.configure():
            return False
        return self.node.trigger_activate() is TransitionCallbackReturn.SUCCESS

    def start(self, instruction: str = TASK) -> PolicyBench:
        """Configure, activate and give an instruction."""
        assert self.activate()
        self.say(instruction)
        return self

    def state(self) -> str:
        """The lifecycle state, asked through its service."""
        return self.call(self.get_state, GetState.Request()).current_state.label

    def show(self, level: int = 100, camera: str | None = None) -> Header:
        """Publish a grey picture of one camera, by default the first."""
        header = Header(stamp=self.node.get_clock().now().to_msg(), frame_id="camera")
        encode = encode_compressed if self.node.settings.camera.compressed else encode_image
        publisher = self.cameras[camera] if camera else self.image
        publisher.publish(encode(np.full((64, 64, 3), level, np.uint8), header))
        return header

    def say(self, instruction: str) -> None:
        """Publish an instruction and wait until the node has heard it, whether or not it likes it."""
        self.instruction.publish(String(data=instruction))
        # Briefly, again and again: rclpy keeps every other thread of this process waiting meanwhile, the node's too.
        wait(lambda: self.instruction.wait_for_all_acked(Duration(seconds=0.02)), "who hears it")
        self.state()  # an answer comes after all that was there before the question

    def step(self, level: int = 100) -> GateStatus:
        """Show a picture, wait for the step and return what the gate says of it."""
        gates = len(self.gates)
        shown = self.show(level)
        self.until(lambda: len(self.gates) > gates, "the next step")
        gate = self.gates[-1]
        assert gate.header.stamp == shown.stamp
        return gate

    def frame(self, index: int, picture: np.ndarray | None = None) -> GateStatus:
        """Show picture `index` of a camera of 10 Hz, whatever the clock says, and return what the gate says of it."""
        gates, stamp = len(self.gates), self._began + Duration(seconds=index / 10)
        image = np.full((64, 64, 3), 100, np.uint8) if picture is None else picture
        self.image.publish(encode_image(image, Header(stamp=stamp.to_msg(), frame_id="camera")))
        self.until(lambda: len(self.gates) > gates, "the next step")
        return self.gates[-1]

    def measure(self, **positions: float) -> None:
        """Publish where joints are and wait until the node has heard it."""
        self.until(self.joint_states.get_subscription_count, "the reader of joint_states")
        self.joint_states.publish(JointState(name=list(positions), position=list(positions.values())))
        inputs = self.node._inputs
        self.until(lambda: positions.items() <= inputs.positions().items(), "joint_states")

    def set(self, name: str, value: Any) -> SetParametersResult:
        """Set a parameter through the node's own service."""
        assert self._parameters.wait_for_services(PATIENCE_S)
        future = self._parameters.set_parameters([Parameter(name, value=value)])
        self.until(future.done, f"the answer to {name}")
        return future.result().results[0]

    def call(self, client: Any, request: Any) -> Any:
        """Call a service of the node."""
        self.until(client.service_is_ready, client.srv_name)
        future = client.call_async(request)
        self.until(future.done, client.srv_name)
        return future.result()

    def report(self) -> PolicyStatus:
        """The node's status, with its diagnostics, published after this call."""
        before = self._published.copy()
        names = [self.node.resolve_topic_name(topic.name) for topic in (interfaces.STATUS, interfaces.DIAGNOSTICS)]
        self.until(lambda: all(len(self._received[name]) > before[name] for name in names), "a status")
        return self.statuses[-1]

    def logged(self, words: str) -> list[str]:
        """The node's log lines that contain `words`."""
        return [log.msg for log in self.logs if log.name == "flashvla" and words in log.msg]

    def log_line(self, words: str) -> str:
        """The one log line of the node that contains `words`, once it has come."""
        self.until(lambda: self.logged(words), f"a log line with {words!r}")
        [line] = self.logged(words)
        return line

    def spin(self, duration_s: float) -> None:
        """Let messages travel for a while."""
        end_s = time.monotonic() + duration_s
        while (remaining_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining_s)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Let messages travel until `condition` holds, and all that the node had published by then has arrived."""
        self._spin_until(condition, what, timeout_s)
        due = dict(self._published)
        self._spin_until(
            lambda: all(len(self._received[topic]) >= count for topic, count in due.items()),
            f"what the node had published at {what}",
            timeout_s,
        )

    def _spin_until(self, condition: Callable[[], Any], what: str, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"{what} did not come; log: {[log.msg for log in self.logs]}"
            self._executor.spin_once(timeout_sec=0.02)

    def _count(self, publisher: Any, topic: str) -> None:
        send = publisher.publish

        def publish(message: Any) -> None:
            if getattr(publisher, "is_activated", True):
                self._published[topic] += 1
            send(message)

        publisher.publish = publish

    def close(self) -> None:
        """Take everything down."""
        self.node.close("the test is over")
        self._executor.shutdown()
        self.node.destroy_node()
        self.robot.destroy_node()
        rclpy.try_shutdown(context=self.context)
        # rclpy's lifecycle state machine keeps the node's handle, and its place on /rosout, until it is collected.
        del self.node, self.policy, self._executor
        gc.collect()
