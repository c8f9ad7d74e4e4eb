"""What the node logs: rejected messages, transitions that fail, and what the package logs by Python's logging."""

from __future__ import annotations

import collections
import functools
import logging
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from flashvla_ros.core.extras import refusal

_PACKAGE = "flashvla_ros"
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?")
_KINDS_REMEMBERED, _EVERY_S = 64, 10.0


class Rejections:
    """Counts rejected messages, and tells of the first of a kind in every ten seconds.

    Two faults are of one kind where their texts differ in numbers and quoted values alone, so that a camera that
    sends another wrong size each time cannot flood the log.

    Args:
        log: Gets one line of text. Not a method of rclpy's logger itself: rclpy ties a severity to the line of code
            that calls it, which would be one in here for warnings and errors alike, and raises at the second severity.
        clock: Monotonic seconds.
    """

    def __init__(self, log: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._kinds: collections.OrderedDict[str, tuple[float, int]] = collections.OrderedDict()  # logged; silent since
        self.count = 0

    def add(self, text: str) -> None:
        """Count one rejection; `text` names the culprit and the fault."""
        self.count += 1
        kind, now_s = _VALUES.sub("#", text), self._clock()
        logged_s, silent = self._kinds.get(kind, (-float("inf"), 0))
        if now_s - logged_s < _EVERY_S:
            self._kinds[kind] = logged_s, silent + 1
            return
        self._kinds[kind] = now_s, 0
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _KINDS_REMEMBERED:
            self._kinds.popitem(last=False)
        self._log(f"{text} ({silent} more like it since)" if silent else text)


Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]


def reported(transition: Transition) -> Transition:
    """Log why a transition failed, and leave it in `transition_error`: rclpy swallows whatever a callback raises.

    What a user can mend undoes the transition; a programming error ends in on_error.
    """

    @functools.wraps(transition)
    def wrapper(node: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception as error:  # noqa: BLE001  # rclpy would do the same, silently
            if line := refusal(error, "the node"):
                node.transition_error = line
                node.get_logger().error(line)
                return TransitionCallbackReturn.FAILURE
            node.transition_error = f"{type(error).__name__}: {error}"
            node.get_logger().error(traceback.format_exc().rstrip())
            return TransitionCallbackReturn.ERROR

    return wrapper


class _RosHandler(logging.Handler):
    """Hands records on. One call for each severity, because rclpy refuses two severities from one line of code."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        if record.levelno >= logging.ERROR:
            self._logger.error(record.getMessage())
        elif record.levelno >= logging.WARNING:
            self._logger.warning(record.getMessage())
        else:
            self._logger.info(record.getMessage())


def forward_to_ros(logger: RcutilsLogger) -> None:
    """Send the package's records, from INFO on, to a node's ROS log, whose name tells two arms apart."""
    package = logging.getLogger(_PACKAGE)
    package.handlers = [handler for handler in package.handlers if not isinstance(handler, _RosHandler)]
    package.addHandler(_RosHandler(logger))
    package.setLevel(logging.INFO)
    package.propagate = False
