"""A disk that fills up while a recorder writes: it says so and ends, and what it had written can be read."""

from __future__ import annotations

import array
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image

from flashvla_ros.bags.recovery import BrokenMcap

pytestmark = pytest.mark.timeout(600)  # a process that starts on a machine with other work; seconds where it is idle

DISK_BYTES, CHUNK_BYTES = 2 * 2**20, 2**20  # rosbags closes a chunk that is larger
PICTURE = array.array("B", bytes(128 * 96 * 3))
PATIENCE_S = 120.0  # without any progress: the time to start, between two writes, and from a full disk to the end

# No file of the process may grow beyond a limit: writing fails as on a full disk, with another number of the error.
LIMITED = f"""
import resource, sys
from flashvla_ros.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({DISK_BYTES}, {DISK_BYTES}))
sys.exit(main(["record", sys.argv[1]]))
"""


@pytest.fixture
def images() -> Iterator[Publisher[Image]]:
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("flashvla", context=context)
    yield node.create_publisher(Image, "image", 10)
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of two mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"this process may not mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def record_until_full(images: Publisher[Image], bag: Path, *program: str) -> str:
    """Start a recorder and publish until it ends with exit code 2; returns the last line of its errors.

    Only progress is timed: a loaded machine may take its time to start the process and to deliver the images.
    """
    recorder = subprocess.Popen([sys.executable, *program, str(bag)], stderr=subprocess.PIPE, text=True)
    picture = Image(width=128, height=96, step=384, encoding="rgb8", data=PICTURE)
    progress, progress_s, sent = (0, 0), time.monotonic(), 0
    try:
        while recorder.poll() is None:
            now = (images.get_subscription_count(), sum(path.stat().st_size for path in bag.glob("*.mcap")))
            if now != progress:
                progress, progress_s = now, time.monotonic()
            state = f"readers and bytes written: {progress}, images sent: {sent}"
            assert time.monotonic() < progress_s + PATIENCE_S, f"the recorder goes on; {state}"
            images.publish(picture)
            sent += 1
            time.sleep(0.01)
        errors = recorder.stderr.read()
    finally:
        recorder.kill()
        recorder.communicate()
    assert recorder.returncode == 2, errors
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def assert_all_but_the_last_chunk_can_be_read(bag: Path) -> None:
    read = BrokenMcap(list(bag.glob("*.mcap"))).counts["/image"] * len(PICTURE)
    assert DISK_BYTES - CHUNK_BYTES - 2 * len(PICTURE) < read < DISK_BYTES


def test_a_file_that_may_not_grow_ends_the_recording_in_one_line_and_leaves_what_was_written(images, tmp_path):
    bag = tmp_path / "bag"
    words = record_until_full(images, bag, "-c", LIMITED)
    assert words == f"flashvla-ros: recording to {bag} stopped: File too large"
    assert_all_but_the_last_chunk_can_be_read(bag)


def test_a_full_disk_ends_the_recording_in_one_line_and_leaves_what_was_written(images, small_disk):
    bag = small_disk / "bag"
    words = record_until_full(images, bag, "-m", "flashvla_ros", "record")
    assert words == f"flashvla-ros: recording to {bag} stopped: No space left on device"
    assert_all_but_the_last_chunk_can_be_read(bag)
