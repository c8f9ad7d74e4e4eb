"""The policy node as a process of its own: ready, a command out, a clean end; and what it says of bad arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from checkpoints import write_checkpoint
from geometry_msgs.msg import Twist, Vector3
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import Bool, Header, String

from flashvla_ros.messages.images import encode_image
from flashvla_ros.msg import GateStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.process import PARENT_VARIABLE

pytestmark = pytest.mark.timeout(600)  # each starts a model; far less where the machine is idle

NODE = [sys.executable, "-m", "flashvla_ros.nodes.policy_node"]
LIMITS = ("control.image_timeout_s:=30", "control.inference_timeout_s:=30", "control.max_image_age_s:=60")
PATIENT = [word for limit in LIMITS for word in ("-p", limit)]


class Robot:
    """Publishes images and an instruction, and counts commands."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("robot", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.commands: list[Any] = []
        self.gates: list[GateStatus] = []
        self._images = self.node.create_publisher(interfaces.IMAGE.type, "image", interfaces.IMAGE.qos)
        self._instructions = self.node.create_publisher(String, "instruction", 10)
        self._button = self.node.create_publisher(Bool, "emergency_stop", interfaces.EMERGENCY_STOP.qos)
        command, gate = interfaces.COMMAND, interfaces.GATE
        self.node.create_subscription(command.type, command.name, self.commands.append, command.qos)
        self.node.create_subscription(gate.type, "/flashvla/gate", self.gates.append, gate.qos)

    def show_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Be a camera of 10 Hz until `condition` holds."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s
            self._instructions.publish(String(data="open the drawer"))
            image = np.random.default_rng().integers(0, 256, (56, 56, 3), dtype=np.uint8)
            stamp = self.node.get_clock().now().to_msg()
            self._images.publish(encode_image(image, Header(stamp=stamp)))
            self.spin(0.1)

    @property
    def pressable(self) -> bool:
        """Whether a node hears the button."""
        return self._button.get_subscription_count() > 0

    def press_for(self, duration_s: float) -> None:
        """Be a safety device that sends its state at 50 Hz: pressed for a while, then released for longer.

        It is connected before it is pressed: what is sent before the node and the button have found each other is lost.
        """
        self.until(lambda: self.pressable, "a node that hears the button")
        for pressed, lasts_s in ((False, 0.1), (True, duration_s), (False, 0.6)):
            end_s = time.monotonic() + lasts_s
            while time.monotonic() < end_s:
                self._button.publish(Bool(data=pressed))
                self.spin(0.02)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < end_s, f"{what} did not come"
            self._executor.spin_once(timeout_sec=0.1)

    def spin(self, duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while (remaining_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining_s)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def robot() -> Iterator[Robot]:
    robot = Robot()
    yield robot
    robot.close()


def with_model(folder: Path) -> list[str]:
    """The command of a node that loads a model."""
    checkpoint = write_checkpoint(folder / "model")
    return [*NODE, "--ros-args", "-p", "node.autostart:=true", "-p", f"model.checkpoint:={checkpoint}", *PATIENT]


def without_model(folder: Path) -> list[str]:
    """The command of the same node with a scripted policy, which starts in a fifth of the time."""
    fault = folder / "fault"
    fault.write_text("")
    program = str(Path(__file__).parent / "faulty_policy_node.py")
    return [sys.executable, program, str(fault), "--ros-args", "-p", "node.autostart:=true", *PATIENT]


@pytest.mark.parametrize(
    ("name", "command"), [("SIGTERM", with_model), ("SIGINT", without_model), ("SIGHUP", without_model)]
)
def test_it_answers_images_and_stops_the_robot_before_it_ends(robot, tmp_path, name, command):
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        robot.show_until(lambda: len(robot.gates) >= 5 and bool(robot.commands), timeout_s=300)
        assert any(gate.decision == GateStatus.INFER for gate in robot.gates)
        assert any(command.twist.linear != Vector3() for command in robot.commands)
        process.send_signal(signal.Signals[name])
        robot.until(lambda: robot.commands[-1].twist == Twist(), "the stop action")
        process.send_signal(signal.SIGINT)  # as launch does once more, while the process ends
        _, output = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert output.count(f"stopped, deactivated: {name}") == 1
    assert "Traceback" not in output
    robot.until(lambda: robot.commands[-1].twist == Twist(), "the stop action")


def test_an_emergency_stop_while_the_model_loads_is_latched(robot, tmp_path):
    process = subprocess.Popen(with_model(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        while "loading" not in (line := process.stderr.readline()):
            assert line, "the node has ended"
        robot.press_for(0.2)
        while "active after" not in (line := process.stderr.readline()):
            assert line, "the node has ended"
        end_s = time.monotonic() + 2.0
        robot.show_until(lambda: time.monotonic() > end_s, timeout_s=60)
        assert not robot.commands
    finally:
        process.kill()
        process.wait()


def test_an_emergency_stop_while_the_process_stands_still_is_latched_and_no_old_image_moves_the_robot(robot, tmp_path):
    process = subprocess.Popen(without_model(tmp_path))
    try:
        robot.show_until(
            lambda: robot.pressable and bool(robot.commands) and robot.commands[-1].twist != Twist(), timeout_s=300
        )
        process.send_signal(signal.SIGSTOP)
        robot.spin(0.2)
        before = len(robot.commands)
        robot.press_for(0.2)
        process.send_signal(signal.SIGCONT)
        robot.until(lambda: len(robot.commands) > before, "the stop action")
        end_s = time.monotonic() + 2.0
        robot.show_until(lambda: time.monotonic() > end_s, timeout_s=60)
        assert all(command.twist == Twist() for command in robot.commands[before + 1 :])
        assert robot.commands[-1].twist == Twist()
    finally:
        process.kill()
        process.wait()


def test_the_death_of_the_launching_process_stops_the_robot(robot, tmp_path):
    launcher = (
        "import os, subprocess, sys\n"
        f"subprocess.run(sys.argv[1:], env={{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}, check=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher, *without_model(tmp_path)])
    try:
        robot.show_until(lambda: bool(robot.commands), timeout_s=300)
    finally:
        process.kill()
        process.wait()
    robot.until(lambda: robot.commands[-1].twist == Twist(), "the stop action")
    robot.until(lambda: not robot.node.get_publishers_info_by_topic("/command"), "the node's end")


def test_a_node_whose_launching_process_is_gone_does_not_start():
    environment = {**os.environ, PARENT_VARIABLE: "1"}
    ended = subprocess.run(NODE, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith(f"the process 1 that started this one ({PARENT_VARIABLE}) has ended")


def test_a_signal_while_the_model_loads_ends_it_too(tmp_path):
    process = subprocess.Popen(with_model(tmp_path), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "loading" in line
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0
    process.stderr.close()


def test_help_says_where_the_parameters_are():
    result = subprocess.run([*NODE, "--help"], capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: policy_node")
    assert "flashvla-ros params" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ros-args", "-p", "gate.delta:=1.5"], ["gate.delta must be from 0 to 1, got 1.5"]),
        (["--ros-args", "-p", "gate.detla:=0.5"], ["'gate.detla'", "did you mean gate.delta"]),
        (["--ros-args", "--params-file", "BAD"], ["bad.yaml is not YAML that can be read", "line 3"]),
        (["--ros-args", "--params-file", "/nowhere.yaml"], ["cannot read /nowhere.yaml: No such file"]),
        (["--ros-args", "--params-file", "/dev/zero"], ["cannot read /dev/zero: it is a device or a pipe"]),
        (
            ["--ros-args", "--params-file", "OTHER", "-r", "__ns:=/left"],
            ["other.yaml is for the node /left/flashvla, only for /flashvla", "or /**: for every node"],
        ),
        (["--ros-args", "--params-file", "OTHER", "-r", "__node:=arm"], ["is for the node /arm, only for /flashvla"]),
        (["--ros-args", "--params-file", "DUMP", "-p", "gate.delta:=1.5"], ["gate.delta must be from 0 to 1, got 1.5"]),
        (["--checkpoint", "x"], ["unknown argument '--checkpoint'", "-p name:=value"]),
        (
            ["--ros-args", "-p", "node.autostart:=true", "-p", "model.checkpoint:=/nowhere/at/all"],
            ["folder /nowhere/at/all does not exist"],
        ),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, arguments, words):
    bad = tmp_path / "bad.yaml"
    bad.write_text("/flashvla:\n  ros__parameters:\n    gate: [1\n")
    other = tmp_path / "other.yaml"
    other.write_text("/flashvla:\n  ros__parameters:\n    limits.lower: [-0.01, -0.01, -0.01, -1.0]\n")
    dump = tmp_path / "dump.yaml"
    dump.write_text("/flashvla:\n  ros__parameters:\n    action:\n      names:\n      - x\n      - y\n")
    files = {"BAD": str(bad), "OTHER": str(other), "DUMP": str(dump)}
    arguments = [files.get(argument, argument) for argument in arguments]
    result = subprocess.run([*NODE, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2, result.stderr
    [line] = [line for line in result.stderr.splitlines() if words[0] in line]
    for word in words[1:]:
        assert word in line
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(not rclpy.__file__.startswith(sys.prefix), reason="an installation's middleware knows SROS 2")
@pytest.mark.parametrize("strategy", ["Enforce", "Permissive"])
def test_security_that_the_middleware_lacks_is_one_line_and_exit_code_2(tmp_path, strategy):
    (tmp_path / "enclaves").mkdir()
    security = {"ENABLE": "true", "STRATEGY": strategy, "KEYSTORE": str(tmp_path)}
    environment = os.environ | {f"ROS_SECURITY_{name}": value for name, value in security.items()}
    ended = subprocess.run(NODE, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ROS_SECURITY_ENABLE is true, which needs a keystore" in ended.stderr.splitlines()[-1]


_HOLES = """
import ctypes, re
from pathlib import Path
from flashvla_ros.nodes.process import return_large_blocks

def resident_kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
CALL
held = [libc.malloc(2000) for _ in range(5000)]  # what is free further down is used up
before = resident_kib()
for _ in range(3):
    blocks = [libc.malloc(size) for size in [25_000_000, 2000] * 4]
    for image in blocks[::2]:
        ctypes.memset(image, 1, 25_000_000)
    for image in blocks[::2]:
        libc.free(image)
print(resident_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells its memory elsewhere")
@pytest.mark.parametrize(("call", "grows"), [("", True), ("return_large_blocks()", False)])
def test_memory_of_4k_images_goes_back_though_what_came_between_stays(call, grows):
    """Without the call glibc keeps them, so the test sees what the call is for."""
    program = [sys.executable, "-c", _HOLES.replace("CALL", call)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    assert (int(ended.stdout) > 20_000) is grows
