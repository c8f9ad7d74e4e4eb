"""A disk that fills up while a recorder writes: it says so and ends, and what it had written can be read."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import rclpy
from rclpy.context import Context
from sensor_msgs.msg import Image

from flashvla_ros.bags.recovery import BrokenMcap

DISK_BYTES, IMAGE_BYTES = 2_000_000, 9216

# No file of the process may grow beyond a limit: writing fails as on a full disk, with another number of the error.
RECORD = f"""
import resource, sys
from flashvla_ros.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({DISK_BYTES}, {DISK_BYTES}))
sys.exit(main(["record", sys.argv[1]]))
"""


@pytest.fixture
def images():
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("flashvla", context=context)
    yield node.create_publisher(Image, "image", 10)
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def test_a_full_disk_ends_the_recording_in_one_line_and_leaves_what_was_written(images, tmp_path):
    bag = tmp_path / "bag"
    recorder = subprocess.Popen([sys.executable, "-c", RECORD, str(bag)], stderr=subprocess.PIPE, text=True)
    try:
        end_s = time.monotonic() + 90
        while recorder.poll() is None:
            assert time.monotonic() < end_s, "the recorder goes on"
            images.publish(Image(width=64, height=48, step=192, encoding="rgb8", data=bytes(IMAGE_BYTES)))
            time.sleep(0.002)
        errors = recorder.stderr.read()
    finally:
        recorder.kill()
        recorder.communicate()
    assert recorder.returncode == 2, errors
    assert errors.splitlines()[-1] == f"flashvla-ros: recording to {bag} stopped: File too large"
    assert "Traceback" not in errors
    assert BrokenMcap(list(bag.glob("*.mcap"))).counts["/image"] * IMAGE_BYTES > DISK_BYTES / 2
