"""What does ROS add to a model? ``python -m benchmarks.overhead``.

Two processes with DDS between them: this one is a camera and a robot, the other one the real policy node around a model
that only waits. Every clock is CLOCK_MONOTONIC, which processes of one machine share, so one step falls into parts:

    publish     the camera's call of publish(), which is not the node's
    transport   from the start of that call to the first line of the node's callback: DDS, rclpy's conversion, executor
    before      from there to the model: decoding, hand-over to the worker, the gate's look
    model       not counted
    after       from the model to the command: memory, limits, and what they wait for
    return      from there to the robot's callback: rclpy's publish(), DDS, rclpy again
    added       all of them but the model
    node        before + after: this package's own

The model sends the times of its call back in the three numbers of its action. What publishing alone costs the node is
measured apart, by :mod:`benchmarks.publishing`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header

from benchmarks.steady import SteadyPolicy
from benchmarks.tables import publish, table
from benchmarks.usage import Usage
from flashvla_ros.bringup.children import Child
from flashvla_ros.bringup.command import keep_to_this_machine, profile_variable
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import CameraSettings, Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.messages.images import encode_compressed, encode_image
from flashvla_ros.msg import GateStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.policy_node import PolicyNode
from flashvla_ros.nodes.process import run_node
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory

RAW, JPEG = "raw", "jpeg"
CONFIGURATIONS = (
    ("raw, Fast DDS as it comes", RAW, ""),
    ("raw, config/fastdds.xml", RAW, "fastdds.xml"),
    ("JPEG, config/fastdds.xml", JPEG, "fastdds.xml"),
)
PARTS = ("publish", "transport", "before", "after", "return", "node", "added")
_WARM_UP = 30  # frames
_START_S = 120.0
_MODULE = "benchmarks.overhead"
_NODE = "--be-the-node"


class WaitingModel(SteadyPolicy):
    """Takes a fixed time and no processor, as a model on a GPU does; its action tells when it was called."""

    def __init__(self, duration_s: float) -> None:
        super().__init__(action_size=3)
        self._duration_s = duration_s

    def infer(self, request: Request) -> Inference:
        """Wait, and return arrival, start and end on the monotonic clock."""
        started_s = time.monotonic()
        time.sleep(self._duration_s)
        times = np.array([[request.observation.received_s, started_s, time.monotonic()]])
        return dataclasses.replace(super().infer(request), action=times)


class Camera(Node):
    """Publishes frames, and notes when their commands come back.

    Attributes:
        rows: One for each answered frame, in the order of :data:`PARTS`, in seconds.
        ready: Whether a command has come.
    """

    def __init__(self, context: Context, *, compressed: bool, width: int, height: int) -> None:
        super().__init__("camera", context=context)
        [topic] = interfaces.image_topics(CameraSettings(compressed=compressed)).values()
        self._images = self.create_publisher(topic.type, topic.name, topic.qos)
        self._frames = [_frame(compressed, width, height, seed) for seed in range(8)]
        command, gate = interfaces.COMMAND, interfaces.GATE
        self.create_subscription(TwistStamped, command.name, self._on_command, command.qos)
        self.create_subscription(GateStatus, gate.name.replace("~", "flashvla"), self._on_gate, gate.qos)
        self._sent: dict[int, tuple[float, float]] = {}
        self._answered_s: dict[int, float] = {}
        self.rows: list[tuple[float, ...]] = []

    @property
    def ready(self) -> bool:
        """Whether commands come."""
        return bool(self._answered_s)

    @property
    def frame_bytes(self) -> int:
        """Size of a frame's data."""
        return len(self._frames[0].data)

    def forget(self) -> None:
        """Leave out every frame so far, also one whose answer is still to come."""
        self._sent.clear()
        self.rows.clear()

    def shoot(self) -> None:
        """Publish one frame."""
        stamp = self.get_clock().now().to_msg()
        frame = self._frames[len(self._sent) % len(self._frames)]
        frame.header = Header(stamp=stamp)
        started_s = time.monotonic()
        self._images.publish(frame)
        self._sent[_key(stamp)] = started_s, time.monotonic()

    def _on_command(self, message: TwistStamped) -> None:
        self._answered_s.setdefault(_key(message.header.stamp), time.monotonic())

    def _on_gate(self, message: GateStatus) -> None:
        key = _key(message.header.stamp)
        if key not in self._sent or key not in self._answered_s:
            return
        (sent_s, published_s), answered_s = self._sent[key], self._answered_s[key]
        received_s, started_s, ended_s = message.action
        commanded_s = received_s + message.step_s
        before_s, after_s = started_s - received_s, commanded_s - ended_s
        added_s = answered_s - sent_s - (ended_s - started_s)
        parts = (published_s - sent_s, received_s - sent_s, before_s, after_s, answered_s - commanded_s)
        self.rows.append((*parts, before_s + after_s, added_s))


def _key(stamp: Time) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def _frame(compressed: bool, width: int, height: int, seed: int) -> Any:
    """A picture with smooth areas, edges and a sensor's noise, so that JPEG has what it has to do with real ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 128 + 80 * np.sin(x / 40 + seed) * np.cos(y / 30)
    boxes = 60 * ((x // 80 + y // 60 + seed) % 2)
    picture = smooth + boxes + rng.normal(0, 4, (height, width))
    image = np.clip(np.stack([picture, picture[::-1], picture[:, ::-1]], axis=-1), 0, 255).astype(np.uint8)
    return (encode_compressed if compressed else encode_image)(image, Header())


def main(arguments: list[str] | None = None) -> int:
    """Print a table of the parts, for each kind of image and transport."""
    args = _parser().parse_args(arguments)
    if args.kind:
        print(json.dumps(_measure(args)))
        return 0
    keep_to_this_machine()
    rows = [_measure_apart(args, *configuration) for configuration in CONFIGURATIONS]
    published = np.array(json.loads(_output([sys.executable, "-m", "benchmarks.publishing"], dict(os.environ))))
    made = meta(
        processor_name(),
        command="overhead",
        size=[args.width, args.height],
        rate_hz=args.rate,
        model_s=args.model_s,
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        nice=os.nice(0),
        publishing={f"p{percent}_ms": 1e3 * float(np.percentile(published, percent)) for percent in (50, 95, 99)},
    )
    publish(page, made, rows, args.json)
    return 0


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, and for each kind of image and transport median and 99th percentile of each part."""
    run, lines = results["meta"], []
    for row in results["rows"]:
        cells = [f"{row[f'{part}_p50_ms']:.2f} / {row[f'{part}_p99_ms']:.2f}" for part in PARTS]
        lines.append([row["name"], f"{row['answered']} of {row['frames']}", *cells])
    words = (
        f"{run['device']}, cores: {run['cores']}, load {run['load']:.1f}; camera at {run['rate_hz']:g} Hz, a model of "
        f"{1e3 * run['model_s']:g} ms; p50 / p99 in milliseconds."
    )
    if "publishing" in run:
        words += " Publishing one step: {p50_ms:.2f} / {p99_ms:.2f}.".format_map(run["publishing"])
    return f"{words}\n\n{table(['image', 'answered', *PARTS], lines)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=600, help="timed, for each kind of image (%(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="of the camera [Hz] (%(default)g)")
    parser.add_argument("--width", type=int, default=640, help="%(default)s")
    parser.add_argument("--height", type=int, default=480, help="%(default)s")
    parser.add_argument("--model-s", type=float, default=0.01, help="time that the model takes (%(default)g)")
    parser.add_argument(
        "--kind", choices=(RAW, JPEG), help="this kind alone, as one line of JSON, with DDS as it is set"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


def _measure_apart(args: argparse.Namespace, name: str, kind: str, profile: str) -> dict[str, Any]:
    """Measure in a process of its own: Fast DDS reads its profile once."""
    environment = {key: value for key, value in os.environ.items() if key != profile_variable()}
    if profile:
        environment[profile_variable()] = str(share_path("config", profile))
    options = [
        f"--{key}={getattr(args, key.replace('-', '_'))}" for key in ("frames", "rate", "width", "height", "model-s")
    ]
    command = [sys.executable, "-m", _MODULE, "--kind", kind, *options]
    return {"name": f"{args.width} x {args.height} {name}", **json.loads(_output(command, environment))}


def _output(command: list[str], environment: dict[str, str]) -> str:
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if run.returncode:
        raise SystemExit(run.returncode)
    return run.stdout


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both processes and return the figures of one kind of image, with DDS as the environment has it."""
    compressed = args.kind == JPEG
    context = Context()
    rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
    camera = Camera(context, compressed=compressed, width=args.width, height=args.height)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(camera)
    child = Child("flashvla", _node_command(compressed, args.model_s), _complain, verbose=False)
    try:
        end_s = time.monotonic() + _START_S
        while not camera.ready:
            _shoot(camera, executor, 1, args.rate)
            if child.code is not None or time.monotonic() > end_s:
                raise SystemExit("\n".join([*child.last_lines, "the policy node does not answer"]))
        _shoot(camera, executor, _WARM_UP, args.rate)
        camera.forget()
        before = Usage.of(child.pid)
        _shoot(camera, executor, args.frames, args.rate)
        cpu_s = Usage.of(child.pid).cpu_s - before.cpu_s
        return _row(camera, args.frames, cpu_s)
    finally:
        child.stop()
        executor.shutdown()
        camera.destroy_node()
        rclpy.try_shutdown(context=context)


def _row(camera: Camera, frames: int, cpu_s: float) -> dict[str, Any]:
    """Sum up what came back; `cpu_s` is the node's processor time, all threads together."""
    row: dict[str, Any] = {
        "frame_kib": round(camera.frame_bytes / 1024),
        "frames": frames,
        "answered": len(camera.rows),
        "node_cpu_ms": round(1e3 * cpu_s / frames, 2),
    }
    for part, values_s in zip(PARTS, zip(*camera.rows, strict=True), strict=True):
        for percent in (50, 95, 99):
            row[f"{part}_p{percent}_ms"] = round(1e3 * float(np.percentile(values_s, percent)), 3)
    return row


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


def _shoot(camera: Camera, executor: SingleThreadedExecutor, frames: int, rate_hz: float) -> None:
    """Publish frames at an even rate and take in what comes back."""
    next_s = time.monotonic()
    for _ in range(frames):
        camera.shoot()
        next_s += 1.0 / rate_hz
        while (remaining_s := next_s - time.monotonic()) > 0.0:
            executor.spin_once(timeout_sec=remaining_s)


def _node_command(compressed: bool, model_s: float) -> list[str]:
    parameters = {
        "node.autostart": "true",
        "node.instruction": "wait",
        "action.names": "[x, 'y', z]",
        "action.kinds": "[velocity, velocity, velocity]",
        "gate.mode": "'off'",
        "camera.compressed": str(compressed).lower(),
        "control.image_timeout_s": "10.0",
    }
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    return [sys.executable, "-m", _MODULE, _NODE, str(model_s), "--ros-args", *arguments]


def _run_node(arguments: list[str]) -> int:
    """Be the other process: the real node around a model that waits."""
    model_s, *ros = arguments

    def load(_settings: Settings) -> LoadedPolicy:
        return LoadedPolicy(WaitingModel(float(model_s)))

    return run_node(lambda: PolicyNode(PolicyFactory(load)), ros)


if __name__ == "__main__":
    sys.exit(_run_node(sys.argv[2:]) if sys.argv[1:2] == [_NODE] else main())
