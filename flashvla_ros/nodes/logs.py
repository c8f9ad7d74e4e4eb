"""What the package logs with Python's logging, such as a checkpoint's loading, in the node's ROS log."""

from __future__ import annotations

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.logging import get_logger

_PACKAGE = "flashvla_ros"


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


def forward_to_ros() -> None:
    """Send the package's records, from INFO on, to the ROS log of this process; once is enough."""
    package = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler, _RosHandler) for handler in package.handlers):
        package.addHandler(_RosHandler(get_logger(_PACKAGE)))
        package.setLevel(logging.INFO)
        package.propagate = False
