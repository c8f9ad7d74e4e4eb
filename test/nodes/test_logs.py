from __future__ import annotations

import logging

from rclpy.logging import get_logger

from flashvla_ros.nodes.logs import forward_to_ros


def test_what_the_package_logs_reaches_the_nodes_log_once(capfd):
    package = logging.getLogger("flashvla_ros")
    before = package.handlers[:], package.level, package.propagate
    try:
        forward_to_ros(get_logger("flashvla"))
        forward_to_ros(get_logger("left.flashvla"))
        for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.INFO):
            logging.getLogger("flashvla_ros.vla.step").log(level, "reading %s, file %d of %d", "a.safetensors", 1, 3)
    finally:
        package.handlers, package.level, package.propagate = before
    text = "".join(capfd.readouterr())
    assert text.count("[left.flashvla]: reading a.safetensors, file 1 of 3") == text.count("reading") == 4
    assert [line.split("]")[0].strip("[ ") for line in text.splitlines()].count("INFO") == 2
