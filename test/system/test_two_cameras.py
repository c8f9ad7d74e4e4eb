"""Two cameras, each a process or a participant of its own: the robot moves while both send, whichever is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from surroundings import IMAGE_TIMEOUT_S, PERIOD_S, Camera, Peer, Surroundings

pytestmark = pytest.mark.timeout(300)

WRIST = "image:=wrist/image"


@pytest.fixture
def around(tmp_path) -> Iterator[Surroundings]:
    around = Surroundings(tmp_path, **{"camera.names": "[front, wrist]"})
    yield around
    around.close()


def test_one_of_two_cameras_is_killed_and_another_takes_its_place(around):
    around.camera = Camera(topic="front/image")
    wrist = Peer("camera", WRIST)
    try:
        around.wait_for_steps()
        killed_s = time.time()
        wrist.kill()
        around.until(lambda: around.stops(killed_s), "the stop action")
        lateness_s = around.stops(killed_s)[0] - killed_s - IMAGE_TIMEOUT_S
        assert lateness_s <= 1.5 * PERIOD_S, f"{lateness_s:.3f} s late"
        assert around.state().stop_reason.startswith("image_timeout: no image of camera 'wrist' for ")
        steps, images = len(around.gates), len(around.camera.stamps)
        around.until(lambda: len(around.camera.stamps) > images + 10, "pictures of the camera that is alive")
        assert (len(around.gates), len(around.stops(killed_s))) == (steps, 1)
        wrist = Peer("camera", WRIST)
        around.wait_for_steps()
        assert around.gates[steps].reason == "image_timeout"
        assert around.state().state == "running"
    finally:
        wrist.kill()
