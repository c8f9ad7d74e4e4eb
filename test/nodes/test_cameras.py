"""Several cameras: the policy sees all of them, each has its own staleness, raw or compressed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedPolicy
from policy_bench import PolicyBench
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import Inference
from flashvla_ros.messages.images import encode_image
from flashvla_ros.msg import GateStatus
from flashvla_ros.remote.loading import FROM_SETTINGS

MakeBench = Callable[..., PolicyBench]
ERROR = b"\x02"


@pytest.fixture
def make() -> Iterator[MakeBench]:
    benches: list[PolicyBench] = []

    def make(policy: ScriptedPolicy | None = None, **parameters: Any) -> PolicyBench:
        values = {"camera__names": ["front", "wrist"], "control__image_timeout_s": 30.0, **parameters}
        benches.append(PolicyBench(policy, **values))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def show(bench: PolicyBench, camera: str, level: int) -> None:
    """Show a picture of one camera, and wait until the node has it."""
    assembler = bench.node._inputs._assembler
    before = assembler.image(camera)
    bench.show(level, camera)
    bench.until(lambda: assembler.image(camera) is not before, camera)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_observation_has_the_newest_picture_of_every_camera_in_their_order(make, compressed):
    policy = ScriptedPolicy()
    bench = make(policy, camera__compressed=compressed, gate__mode="off").start()
    assert set(bench.cameras) == {"front", "wrist"}
    end = "/image/compressed" if compressed else "/image"
    assert [publisher.topic_name for publisher in bench.cameras.values()] == [f"/front{end}", f"/wrist{end}"]
    show(bench, "front", 40)
    bench.report()
    assert f"no usable image yet on /wrist{end}" in bench.diagnostics[-1].status[0].message
    assert not bench.gates
    show(bench, "wrist", 80)
    show(bench, "wrist", 160)
    bench.step(200)
    [request] = policy.requests
    seen = request.observation
    assert list(seen.images) == ["front", "wrist"]
    assert [round(float(np.mean(image))) for image in seen.images.values()] == pytest.approx([200, 160], abs=1)


@pytest.mark.parametrize(("silent", "other"), [("front", "wrist"), ("wrist", "front")])
def test_the_silence_of_either_camera_stops_the_robot_until_it_is_back(make, silent, other):
    bench = make(control__stop_action="zero").start()
    show(bench, "wrist", 100)
    bench.step(100)
    assert bench.set("control.image_timeout_s", 0.3).successful
    shown = 100

    def go_on() -> bool:
        nonlocal shown
        shown += 1
        bench.show(shown, other)
        bench.spin(0.05)
        return bool(bench.logged("stopped, image_timeout"))

    bench.until(go_on, "the stop")
    # Its pictures from before must not move the robot again, though the other camera is alive.
    steps, commands = len(bench.gates), len(bench.commands)
    for _ in range(10):
        go_on()
    status = bench.report()
    assert (status.state, len(bench.gates), len(bench.commands)) == ("stopped", steps, commands)
    assert status.stops == 1
    assert status.stop_reason.startswith(f"image_timeout: no image of camera {silent!r} for ")
    [entry] = bench.diagnostics[-1].status
    assert (entry.level, entry.message) == (ERROR, f"stopped: {status.stop_reason}")
    assert bench.log_line("stopped, image_timeout") == f"stopped, {status.stop_reason}"
    assert bench.commands[-1].twist.linear.x == 0.0
    assert bench.set("control.image_timeout_s", 30.0).successful  # a slow machine must not stop it again
    show(bench, "wrist", 90)
    gate = bench.step(91)
    assert (gate.decision, gate.reason) == (GateStatus.INFER, "image_timeout")
    assert bench.report().state == "running"


def test_pictures_are_let_go_without_a_garbage_collection(make):
    """It may be minutes away in a process that holds a model, and a picture may be of 36 MB."""
    pictures: list[weakref.ref[Any]] = []

    def answer(request: Request, scripted: Inference) -> Inference:
        pictures.extend(map(weakref.ref, request.observation.images.values()))
        return scripted

    policy = ScriptedPolicy(answer=answer)
    bench = make(policy, camera__names=[], gate__mode="off").start()
    gc.disable()
    try:
        for level in range(10):
            bench.step(level)
            policy.requests.clear()
        held = [picture for picture in pictures if picture() is not None]
    finally:
        gc.enable()
    assert len(pictures) == 10
    assert len(held) <= 2  # the newest, and the one before it while they are compared


def test_topics_of_images_are_opened_again_once_memory_has_grown(make, monkeypatch):
    """The middleware keeps pictures that come after a newer one of another publisher; a new reader gives them back."""
    held, mib = [0], 2**20
    monkeypatch.setattr("flashvla_ros.nodes.inputs._resident_bytes", lambda: held[0])
    bench = make(camera__names=[], gate__mode="off").start()
    inputs = bench.node._inputs

    def opened_again_at(size_mib: int) -> bool:
        held[0], before = size_mib * mib, inputs._cameras
        inputs._bound_memory()
        return inputs._cameras != before

    assert not opened_again_at(1000)
    assert not opened_again_at(1100)  # a node with one camera may grow
    second = bench.robot.create_publisher(Image, "image", 1)
    bench.until(lambda: bench.node.count_publishers("/image") == 2, "the second publisher")
    assert not opened_again_at(1110)
    bench.robot.destroy_publisher(second)
    bench.until(lambda: bench.node.count_publishers("/image") == 1, "its end")
    assert opened_again_at(1117)
    assert bench.log_line("memory grew by 17 MiB while several publish on one camera's topic")
    assert not opened_again_at(1300)
    steps = len(bench.gates)
    bench.step(200)
    assert len(bench.gates) > steps


def test_a_camera_that_falls_silent_while_nothing_moves_is_named(make):
    bench = make(node__instruction="", control__image_timeout_s=0.1)
    assert bench.activate()
    for camera in bench.cameras:
        show(bench, camera, 100)
    bench.spin(0.2)
    bench.report()
    words = "waiting: no usable image any more on /front/image, /wrist/image"
    assert bench.diagnostics[-1].status[0].message == words


def test_a_checkpoint_that_sees_one_camera_refuses_two_before_it_is_read():
    bench = PolicyBench(factory=FROM_SETTINGS, camera__names=["front", "wrist"])
    try:
        assert not bench.configure()
        assert bench.state() == "unconfigured"
        line = bench.log_line("this checkpoint sees one camera")
        assert "camera.names has 2 entries ['front', 'wrist']" in line
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(37, "s ahead of this node's clock by its stamp"), (-1_700_000_000, "s old by its stamp")],
    ids=["atomic time", "time since boot"],
)
def test_a_camera_on_another_clock_is_refused_in_both_directions(make, ahead_s, words):
    """By a clock that is ahead an old image looks new, so that control.max_image_age_s could not hold."""
    bench = make(camera__names=[], control__inference_timeout_s=30.0, control__max_image_age_s=31.0).start()
    stamp = bench.node.get_clock().now().to_msg()
    stamp.sec += ahead_s
    picture = encode_image(np.full((8, 8, 3), 100, np.uint8), Header(stamp=stamp))
    bench.image.publish(picture)
    bench.until(lambda: bench.logged(words), "the rejection")
    assert not bench.gates
    assert bench.set("control.max_image_age_s", 0.0).successful
    bench.image.publish(picture)
    bench.until(lambda: bench.gates, "the step")
