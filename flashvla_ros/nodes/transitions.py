"""Lifecycle transitions that say why they failed: rclpy swallows whatever a callback raises, without a word."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Protocol, TypeVar

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from flashvla_ros.core.errors import FlashVLAError


class Reporting(Protocol):
    """A node whose last failure can be read."""

    transition_error: str

    def get_logger(self) -> RcutilsLogger:
        """Where failures are logged."""


N = TypeVar("N", bound=Reporting)
Transition = Callable[[N, LifecycleState], TransitionCallbackReturn]


def reported(transition: Transition[N]) -> Transition[N]:
    """Log why a transition failed. What a user can mend undoes the transition; a programming error ends in on_error."""

    @functools.wraps(transition)
    def wrapper(node: N, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except FlashVLAError as error:
            node.transition_error = str(error)
            node.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # noqa: BLE001  # rclpy would do the same, silently
            node.transition_error = f"{type(error).__name__}: {error}"
            node.get_logger().error(traceback.format_exc().rstrip())
            return TransitionCallbackReturn.ERROR

    return wrapper
