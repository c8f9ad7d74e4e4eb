"""A node as a process: start, spin; when it has finished, or on SIGINT or SIGTERM, leave the robot safe and exit."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from flashvla_ros.cli.exits import EXIT_USAGE
from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.nodes.logs import forward_to_ros

_SPIN_S = 0.1  # a signal is noticed within this time
_SOURCE_LINE = re.compile(r",?\s*\bat /\S+:\d+")  # rcl names its own source files


class StoppableNode(Protocol):
    """What a process asks of its node, which is an rclpy node, beside spinning.

    Attributes:
        failure: Why the node gave up, empty while it has not; ends the process with exit code 2.
        finished: True once the node has nothing left to do; ends the process with exit code 0.
        loading: True while a callback may be interrupted by a signal.
    """

    failure: str
    finished: bool
    loading: bool

    def close(self, why: str) -> None:
        """Leave the robot safe; the node is destroyed next."""

    def destroy_node(self) -> None:
        """Give its handles back."""


def run_node(make: Callable[[], StoppableNode], arguments: Sequence[str] | None = None) -> int:
    """Run a node until a signal arrives or it fails, and return the exit code.

    rclpy's own signal handlers would shut the context down first, and no stop action could be published any more.

    Args:
        make: Makes the node once rclpy is initialised.
        arguments: Command line without the program's name; the process's own where it is None.
    """
    try:
        _initialise(list(sys.argv[1:] if arguments is None else arguments))
        forward_to_ros()
        return _spin(make())
    except FlashVLAError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 0
    finally:
        rclpy.try_shutdown()


def _initialise(arguments: list[str]) -> None:
    try:
        unknown = remove_ros_args(["", *arguments])[1:]
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # of many types, none of them public: a YAML file that is not there or not YAML, …
        raise SettingsError(_SOURCE_LINE.sub("", " ".join(str(error).split()))) from error
    if unknown:
        raise SettingsError(f"unknown argument {unknown[0]!r}; parameters are given as --ros-args -p name:=value")


def _spin(node: StoppableNode) -> int:
    signals: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if node.loading or len(signals) > 1:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not signals and not node.failure and not node.finished:
            executor.spin_once(timeout_sec=_SPIN_S)
    finally:
        node.close(signal.Signals(signals[0]).name if signals else node.failure or "the node has ended")
        executor.shutdown()
        node.destroy_node()
    return _refuse(node.failure) if node.failure else 0


def _refuse(line: str) -> int:
    print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {line}", file=sys.stderr, flush=True)
    return EXIT_USAGE
