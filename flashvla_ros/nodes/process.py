"""A node as a process: start, spin; when it has finished, or a signal ends it, leave the robot safe and exit."""

from __future__ import annotations

import abc
import ctypes
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from flashvla_ros.cli.exits import EXIT_USAGE
from flashvla_ros.cli.parameter_files import check_files, given_files, quote_for_rcl
from flashvla_ros.cli.yaml_files import read_yaml
from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.extras import refusal
from flashvla_ros.nodes.logs import forward_to_ros

PARENT_VARIABLE = "FLASHVLA_PARENT_PID"  # the process that started this one, and whose death ends it
_SPIN_S = 0.1  # a signal is noticed within this time
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: a terminal or an ssh session that closes
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGE_BYTES = 16 * 2**20
_HELP = """usage: {name} [--ros-args [--params-file FILE] [-p NAME:=VALUE] [-r FROM:=TO] [--log-level LEVEL]]

A ROS 2 node. `flashvla-ros params` prints every parameter of the policy node; `ros2 launch flashvla_ros
bringup.launch.py` starts it with a robot."""
_SOURCE_LINE = re.compile(r",?\s*\bat /\S+:\d+")  # rcl names its own source files


class StoppableNode(Node):
    """What a process asks of its node in addition to spinning.

    Attributes:
        failure: Why the node gave up, which it has logged; empty while it has not; ends the process with exit code 2.
        finished: True once the node has nothing left to do; ends the process with exit code 0.
        loading: True while a callback may be interrupted by a signal.
    """

    failure = ""
    finished = loading = False

    @abc.abstractmethod
    def close(self, why: str) -> None:
        """Leave the robot safe; the node is destroyed next."""


def run_node(make: Callable[[], StoppableNode], arguments: Sequence[str] | None = None) -> int:
    """Run a node until a signal arrives or it fails, and return the exit code.

    rclpy's own signal handlers would shut the context down first, and no stop action could be published any more.

    Args:
        make: Makes the node once rclpy is initialised.
        arguments: Command line without the program's name; the process's own where it is None.
    """
    stop = _StopSignal()
    return_large_blocks()
    try:
        follow_parent(os.environ.get(PARENT_VARIABLE, ""))
        words = list(sys.argv[1:] if arguments is None else arguments)
        if {"-h", "--help"} & set(words):
            print(_HELP.format(name=_program()))
            return 0
        files = given_files(words)
        for file in files:
            read_yaml(file)  # rcl's own parser blocks on a pipe, and takes minutes over a large file
        _initialise(words)
        node = _checked(_made(make), files)
        forward_to_ros(node.get_logger())
        return _spin(node, stop)
    except (FlashVLAError, ImportError) as error:
        if not (line := refusal(error, _program())):
            raise
        print(f"{_program()}: {line}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 0
    finally:
        stop.ignore()  # launch sends a second SIGINT, which would end the interpreter in a traceback
        rclpy.try_shutdown()


def leave(code: int) -> NoReturn:
    """End the process now, once its node is gone.

    An interpreter takes up to 20 s to take torch apart on a busy machine, and launch would lose its patience.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def follow_parent(pid: str) -> None:
    """Let the kernel end this process, by SIGTERM, once the process `pid` that started it has died.

    A killed ``ros2 launch`` leaves its nodes running, and a robot must not be left with nobody in charge.

    Args:
        pid: Number of the parent as text; empty: nobody is followed.
    """
    if not pid or sys.platform != "linux":
        return
    end_with_parent()
    if pid != str(os.getppid()):  # it died before the kernel was told
        raise SettingsError(f"the process {pid} that started this one ({PARENT_VARIABLE}) has ended")


def end_with_parent() -> None:
    """Let the kernel end this process, by SIGTERM, once its parent has died."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def return_large_blocks() -> None:
    """Let every block of 16 MiB or more go back to the system once it is freed.

    glibc raises that size to 32 MiB as it meets larger blocks, and 4K images (25 MB) then leave holes in its heap.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # musl and macOS have none
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


class _StopSignal:
    """The first signal that asks the process to end; a second one, or one while a model loads, interrupts.

    Attributes:
        name: Of the first signal; empty while there was none.
        interrupts: Whether the first signal already interrupts what runs: before a node can answer it, and while a
            callback takes long.
    """

    def __init__(self) -> None:
        self.name = ""
        self.interrupts: Callable[[], bool] = lambda: True
        for number in _ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again, self.name = bool(self.name), self.name or signal.Signals(number).name
        if again or self.interrupts():
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Hear no more signals."""
        for number in _ENDS:
            signal.signal(number, signal.SIG_IGN)


def _initialise(arguments: list[str]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="flashvla_") as folder:
            arguments = quote_for_rcl(arguments, Path(folder))
            unknown = remove_ros_args(["", *arguments])[1:]
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # of many types, none of them public: a YAML file that is not there or not YAML, …
        raise SettingsError(_line_of(error)) from error
    if unknown:
        raise SettingsError(f"unknown argument {unknown[0]!r}; parameters are given as --ros-args -p name:=value")


def _made(make: Callable[[], StoppableNode]) -> StoppableNode:
    try:
        return make()
    except rclpy_implementation.RCLError as error:  # of a middleware without SROS 2 that is asked for it, for one
        raise SettingsError(_line_of(error)) from error


def _line_of(error: Exception) -> str:
    """Return what rcl says in one line; where SROS 2 is asked for, it often says nothing."""
    line = _SOURCE_LINE.sub("", " ".join(str(error).split()))
    if os.environ.get("ROS_SECURITY_ENABLE", "").lower() != "true":
        return line
    return f"{line}; ROS_SECURITY_ENABLE is true, which needs a keystore and a middleware with SROS 2; no wheel has it"


def _checked(node: StoppableNode, files: Sequence[Path]) -> StoppableNode:
    """Refuse to run a node with a parameter file that sets nothing for it: rcl passes over it without a word."""
    try:
        check_files(files, node.get_fully_qualified_name())
    except SettingsError:
        node.close("its parameter file is for another node")
        node.destroy_node()
        raise
    return node


def _spin(node: StoppableNode, stop: _StopSignal) -> int:
    stop.interrupts = lambda: node.loading
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.name and not node.failure and not node.finished:
            executor.spin_once(timeout_sec=_SPIN_S)
    finally:
        stop.ignore()
        node.close(stop.name or node.failure or "the node has ended")
        executor.shutdown()
        node.destroy_node()
    return EXIT_USAGE if node.failure else 0


def _program() -> str:
    return Path(sys.argv[0]).name
