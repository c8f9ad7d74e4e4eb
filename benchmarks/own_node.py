"""What stands around a policy node under abuse: nodes on threads of their own, and pictures that no model knows."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from flashvla_ros.messages.images import encode_image


class OwnNode(Node):
    """A node on a context and a thread of its own."""

    def __init__(self, name: str) -> None:
        context = Context()
        rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        super().__init__(name, context=context)
        self._executor_ = SingleThreadedExecutor(context=context)
        self._executor_.add_node(self)
        self._spinner = threading.Thread(target=self._spin, name=name, daemon=True)

    def start(self) -> None:
        """Start to hear."""
        self._spinner.start()

    def close(self) -> None:
        """Hear nothing more."""
        self._executor_.shutdown()
        self._spinner.join()
        self.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor_.spin()


def picture(noise: np.random.Generator, height: int = 96, width: int = 128, shift_s: float = 0.0) -> Image:
    """Return a picture with a sensor's noise, stamped now or elsewhere."""
    now_ns = int(1e9 * (time.time() + shift_s))
    stamp = Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)
    return encode_image(noise.integers(0, 256, (height, width, 3), dtype=np.uint8), Header(stamp=stamp))
