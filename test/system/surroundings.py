"""A camera, a robot and an observer around a policy node in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from flashvla_ros.messages.images import encode_image
from flashvla_ros.msg import GateStatus, PolicyStatus
from flashvla_ros.nodes import interfaces

PERIOD_S = 0.2  # of the camera, and so of control
IMAGE_TIMEOUT_S = 0.8
PATIENCE_S = 60.0  # for processes to start and to find each other on a machine with other work
HERE = Path(__file__).parent


def seconds(stamp: Time) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


class Peer:
    """A camera or a robot that may be killed.

    Attributes:
        lines: What it has printed.
    """

    def __init__(self, role: str, *remappings: str) -> None:
        rules = [word for rule in remappings for word in ("-r", rule)]
        command = [sys.executable, str(HERE / "peer.py"), role, "--ros-args", *rules]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self._process.stdout.readline, "")))
        self._reader.start()

    def kill(self) -> None:
        """With SIGKILL: it takes no leave of anybody."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()


class Camera:
    """Five pictures a second with a sensor's noise, on a participant of its own.

    Attributes:
        stamps: Of what was sent, on the system's clock.
        frozen: Send one picture again and again.
        shift_s: Added to every stamp.
    """

    def __init__(self, qos: QoSProfile | int = 1, topic: str = "image") -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("camera", context=self.context)
        self._publisher: Publisher[Any] = self.node.create_publisher(interfaces.IMAGE.type, topic, qos)
        self._rng = np.random.default_rng()
        self._picture = self._noise()
        self._due_s = time.monotonic()
        self.stamps: list[float] = []
        self.frozen = False
        self.shift_s = 0.0

    def shoot_if_due(self) -> None:
        if time.monotonic() < self._due_s:
            return
        self._due_s = max(self._due_s + PERIOD_S, time.monotonic())
        if not self.frozen:
            self._picture = self._noise()
        now_s = time.time()
        self.stamps.append(now_s)
        sec, fraction = divmod(now_s + self.shift_s, 1.0)
        stamp = Time(sec=int(sec), nanosec=int(fraction * 1e9))
        self._publisher.publish(encode_image(self._picture, Header(stamp=stamp)))

    def _noise(self) -> np.ndarray[Any, Any]:
        return self._rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)

    @property
    def heard(self) -> bool:
        """Whether somebody subscribes."""
        return self._publisher.get_subscription_count() > 0

    def close(self) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


class Surroundings:
    """Starts the node with a policy whose faults a file chooses, and hears all that it says.

    Attributes:
        camera: The camera in this process; None while there is none.
        commands, gates, statuses: What came, in order.
        process: The node's.

    Args:
        folder: For the file with the fault, and the log.
        namespace: Of the node, and of all around it.
        remappings: Of the node's topics.
        parameters: Of the node.
    """

    def __init__(self, folder: Path, namespace: str = "", remappings: tuple[str, ...] = (), **parameters: Any) -> None:
        self._fault = folder / "fault"
        self.fault("")
        values = {
            "node.autostart": "true",
            "node.instruction": "push",
            "gate.mode": "paper",
            "gate.delta": 0.0,
            "gate.max_angle_deg": 180.0,
            "camera.reliable": "true",
            "control.image_timeout_s": IMAGE_TIMEOUT_S,
            "control.frozen_image_s": IMAGE_TIMEOUT_S,
            **parameters,
        }
        arguments = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        arguments += ["-r", f"__ns:={namespace}"] if namespace else []
        arguments += [word for rule in remappings for word in ("-r", rule)]
        self._node = [sys.executable, str(HERE / "faulty_policy_node.py"), str(self._fault), "--ros-args", *arguments]
        self._namespace = namespace
        self._log = (folder / "log").open("w+")
        self.start_policy()
        self.camera: Camera | None = None
        self.commands: list[Any] = []
        self.gates: list[GateStatus] = []
        self.statuses: list[PolicyStatus] = []
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("observer", context=self.context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        for topic, received in (
            (interfaces.COMMAND, self.commands),
            (interfaces.GATE, self.gates),
            (interfaces.STATUS, self.statuses),
        ):
            name = topic.name.replace("~", f"{namespace}/flashvla")
            self.node.create_subscription(topic.type, name, received.append, 100)

    def start_policy(self) -> None:
        """Start the node's process, the first time or in the place of one that has ended."""
        self.process = subprocess.Popen(self._node, stderr=self._log, text=True)

    def fault(self, word: str) -> None:
        """Let the policy misbehave from its next inference on; an empty word ends that."""
        path = self._fault.with_suffix(".new")
        path.write_text(word, encoding="utf-8")
        path.replace(self._fault)

    @property
    def log(self) -> str:
        """What the node's process has printed."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def stops(self, since_s: float) -> list[float]:
        """Stamps of the stop actions since a time on the system's clock; the policy itself always moves along x."""
        stamps = [seconds(command.header.stamp) for command in self.commands if command.twist.linear.x == 0.0]
        return [stamp_s for stamp_s in stamps if stamp_s >= since_s]

    def state(self) -> PolicyStatus:
        """The node's status, not older than this call."""
        count = len(self.statuses)
        self.until(lambda: len(self.statuses) > count + 1, "a status")  # the next one may be under way already
        return self.statuses[-1]

    def run(self) -> None:
        """Show pictures until the robot has moved for two steps in a row."""
        if self.camera is None:
            self.camera = Camera(topic=f"{self._namespace}/image")
        self.wait_for_steps()

    def wait_for_steps(self) -> None:
        """Wait until the robot has moved for two steps in a row."""
        count = len(self.gates) + 3
        self.until(lambda: len(self.gates) >= count and self._moving, "steps")

    @property
    def _moving(self) -> bool:
        return bool(self.commands) and self.commands[-1].twist.linear.x != 0.0

    def unplug(self) -> float:
        """Take the camera away, participant and all; returns the stamp of its last picture."""
        assert self.camera is not None
        last_s = self.camera.stamps[-1]
        self.camera.close()
        self.camera = None
        return last_s

    def spin(self, duration_s: float) -> None:
        """Let time pass; the camera goes on."""
        end_s = time.monotonic() + duration_s
        self.until(lambda: time.monotonic() >= end_s, "the end", duration_s + PATIENCE_S)

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> None:
        """Let time pass until `condition` holds."""
        end_s = time.monotonic() + patience_s
        while not condition():
            assert self.process.poll() is None, f"the node has ended: {self.log}"
            assert time.monotonic() < end_s, f"{what} did not come: {self.log}"
            if self.camera is not None:
                self.camera.shoot_if_due()
            self._executor.spin_once(timeout_sec=0.01)

    def close(self) -> None:
        """End everything."""
        if self.camera is not None:
            self.camera.close()
        self.process.kill()
        self.process.wait()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)
        self._log.close()
