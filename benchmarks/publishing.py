"""What publishing one control step costs, as one line of JSON: a process of :mod:`benchmarks.overhead`.

Calls the policy node's own :class:`~flashvla_ros.nodes.outputs.Outputs` with real steps: command, gripper and
GateStatus, encoded and handed to DDS, with one reader of all three in another process. Nobody watches the overlay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node

from benchmarks.steady import SteadyPolicy
from flashvla_ros.bringup.children import Child
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, Observation
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.outputs import Outputs

_NAME = "publish_cost"
_MATCH_S = 60.0
_PERIOD_S = 0.005  # between steps, so that the reader keeps up


def main() -> int:
    """Publish, time, print; or read, as the other process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="timed steps (default: %(default)s)")
    parser.add_argument("--read", action="store_true", help="be the reader")
    args = parser.parse_args()
    keep_to_this_machine()
    rclpy.init()
    try:
        return exit_code(_read if args.read else lambda: _publish(args.count))
    finally:
        rclpy.try_shutdown()


def _topics() -> list[interfaces.Interface]:
    return [interfaces.COMMAND, interfaces.GRIPPER_COMMAND, interfaces.GATE]


def _read() -> None:
    node = Node("publish_cost_reader")
    for topic in _topics():
        name = topic.name.replace("~", f"/{_NAME}")
        node.create_subscription(topic.type, name, lambda _: None, topic.qos)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.spin()


def _publish(count: int) -> None:
    node = LifecycleNode(_NAME)
    settings = Settings()
    outputs = Outputs(node, settings, ActionSpec.of(settings.action))
    for transition in (node.trigger_configure, node.trigger_activate):
        if transition() is not TransitionCallbackReturn.SUCCESS:
            raise FlashVLAError("the publishing node did not become active")
    reader = Child("reader", [sys.executable, "-m", "benchmarks.publishing", "--read"], print, verbose=False)
    try:
        _wait_for_reader(node)
        steps = _steps(settings, count + count // 10)
        seconds = [_timed(outputs, step) for step in steps][count // 10 :]
    finally:
        reader.stop()
        outputs.close()
        node.destroy_node()
    print(json.dumps(seconds))


def _wait_for_reader(node: LifecycleNode) -> None:
    deadline_s = time.monotonic() + _MATCH_S
    names = [topic.name.replace("~", f"/{_NAME}") for topic in _topics()]
    while any(node.count_subscribers(name) == 0 for name in names):
        if time.monotonic() > deadline_s:
            raise FlashVLAError("no reader was found: DDS discovery does not work on this machine")
        time.sleep(0.05)


def _steps(settings: Settings, count: int) -> list[StepResult]:
    stepper = Stepper(SteadyPolicy(4), ActionSpec.of(settings.action))
    image = np.zeros((224, 224, 3), dtype=np.uint8)
    stamps = (index * settings.action.dt_s for index in range(1, count + 1))
    return [stepper.step(Observation({"image": image}, "open the drawer", stamp_s), settings) for stamp_s in stamps]


def _timed(outputs: Outputs, step: StepResult) -> float:
    time.sleep(_PERIOD_S)
    started_s = time.perf_counter()
    outputs.step(step)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
