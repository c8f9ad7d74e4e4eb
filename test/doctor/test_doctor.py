"""What the doctor prints of a sound checkpoint, of parameters that do not fit it, of a machine and of cameras."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from checkpoints import write_checkpoint
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from flashvla_ros.__main__ import main
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import CameraSettings, ModelSettings, Settings
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.doctor.finding import Finding, Level
from flashvla_ros.doctor.machine import check_machine
from flashvla_ros.doctor.ros import check_ros, image_topics
from flashvla_ros.nodes import interfaces
from flashvla_ros.vla.random_checkpoint import config_of_size, write_random_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def examine(folder: Path, **values: Any) -> dict[str, Finding]:
    settings = Settings().with_values({name.replace("__", "."): value for name, value in values.items()})
    return {finding.name: finding for finding in check_checkpoint(folder, settings)}


def test_a_sound_checkpoint_is_described_and_nothing_is_to_mend(folder: Path) -> None:
    found = examine(folder)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert "DINOv2 + SigLIP at 56 px, 16 visual tokens; Llama with 4 layers of 32" in found["model"].text
    assert found["actions"].text == "toy: 4 dimensions in -0.01…0.01, -0.01…0.01, -0.01…0.01, -1…1"
    assert found["mapping"].text == "x (delta), y (delta), z (delta), gripper (gripper)"
    assert "0.625 → 10" in found["budgets"].text
    assert "pruning.layer 2 of 0 to 3" in found["budgets"].text
    assert "arXiv 2505.21200" in found["pruning"].text
    assert found["pruning"].text.endswith("needs no attention weights")


@pytest.mark.parametrize(
    ("architecture", "title", "part", "chunk", "cache"),
    [
        ("openvla_oft", "OpenVLA-OFT", "head", "8 time steps of 4 dimensions in one pass", "0.0 MB of cache"),
        ("univla", "UniVLA", "action decoder", "12 time steps of 4 dimensions in 4 passes", "0.1 MB of cache"),
    ],
)
def test_each_architecture_is_told_with_its_parts(architecture, title, part, chunk, cache, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, config_of_size("tiny"), architecture=architecture, action_size=4)
    cameras = ("front", "wrist") if architecture == "openvla_oft" else ()
    found = examine(tmp_path, model__unnorm_key="random_4d", camera__names=cameras)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert found["model"].text.startswith(f"{title}: DINOv2")
    assert part in found
    assert found["chunk"].text.startswith(chunk)
    assert cache in found["memory"].text


def test_parameters_that_do_not_fit_are_told_with_the_remedy(folder: Path) -> None:
    found = examine(folder, action__names=["a", "b"], action__kinds=["delta", "gripper"], pruning__layer=9)
    assert found["mapping"].level is Level.FAILURE
    assert "4 action dimensions, action.names declares 2" in found["mapping"].text
    assert "set action.names" in found["mapping"].remedy
    assert found["budgets"].level is Level.FAILURE
    assert "must be below 4" in found["budgets"].text


def test_the_centre_crop_is_told_and_libero_fine_tunes_are_reminded_of_it(folder: Path, tmp_path: Path) -> None:
    assert examine(folder, model__center_crop=0.9)["images"].text.endswith("56x56, then the centre 90 % of its area")
    libero = shutil.copytree(folder, tmp_path / "libero")
    statistics = json.loads((libero / "config.json").read_text())["norm_stats"]["toy"]
    (libero / "dataset_statistics.json").write_text(json.dumps({"libero_goal_no_noops": statistics}))
    reminder = examine(libero)["images"]
    assert reminder.level is Level.WARNING
    assert "set model.center_crop to 0.9" in reminder.remedy
    assert examine(libero, model__center_crop=0.9)["images"].level is Level.OK


def test_actions_that_are_no_metres_are_told(folder: Path) -> None:
    assert "speed" not in examine(folder)
    found = examine(folder, action__dt_s=0.001)["speed"]
    assert found.level is Level.WARNING
    assert found.text == "the statistics let x move at 10 m/s"
    assert "speed" not in examine(folder, action__dt_s=0.001, action__kinds=["absolute"] * 3 + ["gripper"])


def test_more_cameras_than_the_checkpoint_sees_are_told(folder: Path) -> None:
    assert "cameras" not in examine(folder, camera__names=["front"])
    found = examine(folder, camera__names=["front", "wrist"])["cameras"]
    assert found.level is Level.FAILURE
    assert "['front', 'wrist'], this checkpoint sees one camera (num_images_in_input): name as many" in found.text


def test_memory_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashvla_ros.doctor.checkpoint.available_memory", lambda: 100_000_000)
    assert examine(folder)["memory"].level is Level.FAILURE


def test_the_command_exits_by_what_it_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--checkpoint", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    report = tmp_path / "report.json"
    assert main(["doctor", "--checkpoint", str(tmp_path / "nowhere"), "--json", str(report)]) == 1
    assert "does not exist" in capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    assert [row["level"] for row in rows] == ["ok", "ok", "failure"]
    parameters = tmp_path / "left.yaml"
    parameters.write_text(
        "/left/arm:\n  ros__parameters:\n    action.names: [x, y, roll, gripper]\n".replace("y,", "'y',")
    )
    capsys.readouterr()
    assert main(["doctor", "--checkpoint", str(folder), "--settings", str(parameters), "--node", "/left/arm"]) == 1
    assert "FAIL  command       command.type TwistStamped carries" in capsys.readouterr().out
    assert main(["doctor", "--checkpoint", str(folder), "--settings", str(parameters)]) == 2
    assert "is for the node /flashvla, only for /left/arm" in capsys.readouterr().err
    assert main(["doctor", "--checkpoint", str(folder), "--set", "model.unnorm_keys=x"]) == 2
    assert "did you mean model.unnorm_key" in capsys.readouterr().err


def test_a_command_that_cannot_carry_the_action_is_told_beside_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "simplejpeg" else find(name))
    values = ["--set", "camera.compressed=true", "--set", "command.type=PoseStamped"]
    assert main(["doctor", "--checkpoint", str(tmp_path / "nowhere"), *values]) == 1
    printed = capsys.readouterr().out
    assert "warn  pictures" in printed
    assert "FAIL  command       command.type PoseStamped carries" in printed


def test_the_machine_is_described() -> None:
    found = {finding.name: finding for finding in check_machine(ModelSettings(device="cpu", attention="sdpa"))}
    assert found["Python"].level is Level.OK
    assert found["attention"].text == "sdpa in float32 on cpu"
    refused = {finding.name: finding for finding in check_machine(ModelSettings(device="cuda:7"))}
    assert refused["attention"].level is Level.FAILURE
    assert "model.device 'cuda:7'" in refused["attention"].text


@contextlib.contextmanager
def camera(kind: type[Any], reliability: ReliabilityPolicy, topic: str = "image") -> Iterator[None]:
    """Publish small images from a thread."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("camera", context=context)
    publisher = node.create_publisher(kind, topic, QoSProfile(depth=1, reliability=reliability))
    message = kind(height=4, width=6, encoding="rgb8", step=18, data=bytes(72)) if kind is Image else kind()
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.05):
            publisher.publish(message)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        node.destroy_node()
        context.try_shutdown()


def look(
    wait_s: float = 30.0, name: str = "camera", remap: tuple[str, ...] = (), node: str = "/flashvla", **values: Any
) -> Finding:
    settings = Settings().with_values({key.replace("__", "."): value for key, value in values.items()})
    return next(finding for finding in check_ros(settings, wait_s, remap, node) if finding.name == name)


def test_a_camera_whose_images_the_node_could_not_use_is_told() -> None:
    with camera(CompressedImage, ReliabilityPolicy.BEST_EFFORT, "image/compressed"):
        finding = look(camera__compressed=True)
    assert finding.level is Level.FAILURE
    assert "the node could not use its images: 0 bytes of format '' are no picture" in finding.text


def test_a_camera_is_found_with_what_it_sends_and_its_quality_of_service() -> None:
    with camera(Image, ReliabilityPolicy.BEST_EFFORT):
        finding = look()
        demanding = look(camera__reliable=True)
    assert finding.level is Level.OK
    assert finding.text.startswith("/image, best_effort: 6x4 rgb8")
    assert demanding.level is Level.FAILURE
    assert "camera.reliable to false" in demanding.remedy


def test_a_topic_of_another_type_is_told() -> None:
    with camera(CompressedImage, ReliabilityPolicy.RELIABLE):
        finding = look()
    assert finding.level is Level.FAILURE
    assert "CompressedImage, the node reads sensor_msgs/msg/Image" in finding.text
    assert finding.remedy == "set camera.compressed to true, and remap image/compressed to it"


@pytest.mark.parametrize("names", [(), ("left", "right")])
@pytest.mark.parametrize("compressed", [True, False])
def test_the_topics_are_those_of_the_node(names: tuple[str, ...], compressed: bool) -> None:
    camera = CameraSettings(names=names, compressed=compressed)
    assert image_topics(camera) == [interface.name for interface in interfaces.image_topics(camera).values()]


def test_an_absent_camera_is_told() -> None:
    finding = look(wait_s=0.5)
    assert finding.level is Level.WARNING
    assert "nobody publishes /image" in finding.text
    assert "nobody publishes /left/image" in look(wait_s=0.1, node="/left/flashvla").text


@pytest.fixture
def arm() -> Iterator[Node]:
    """A controller's node."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("arm_controller", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_a_controller_is_found_by_its_own_topic_and_its_type_compared(arm: Node) -> None:
    arm.create_subscription(TwistStamped, "/servo_node/delta_twist_cmds", lambda _: None, 10)
    remap = ("command:=/servo_node/delta_twist_cmds",)
    found = look(5.0, "controller", remap)
    text = "/servo_node/delta_twist_cmds is read as geometry_msgs/msg/TwistStamped by arm_controller"
    assert (found.level, found.text) == (Level.OK, text)
    spec = {"command__type": "JointTrajectory", "action__names": ["elbow"], "action__kinds": ["absolute"]}
    other = look(5.0, "controller", remap, **spec)
    assert other.level is Level.FAILURE
    assert "read as geometry_msgs/msg/TwistStamped, the node sends trajectory_msgs/msg/JointTrajectory" in other.text
    absent = look(0.2, "controller")
    assert absent.level is Level.WARNING
    assert "nobody reads /command" in absent.text


def test_a_controller_that_asks_for_more_than_the_node_offers_is_told(arm: Node) -> None:
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    arm.create_subscription(TwistStamped, "command", lambda _: None, latched)
    found = look(5.0, "controller")
    assert found.level is Level.FAILURE
    assert found.text == ("QoS of /command does not fit: ERROR: Volatile publisher and transient local subscription")
    assert "no more than that" in found.remedy


@pytest.mark.parametrize(("share", "level"), [(1.1, Level.OK), (0.9, Level.FAILURE)])
def test_a_controller_that_asks_whether_the_node_lives(arm: Node, share: float, level: Level) -> None:
    asks = QoSProfile(depth=1, liveliness_lease_duration=Duration(seconds=share * interfaces.COMMAND.lease_s))
    arm.create_subscription(TwistStamped, "command", lambda _: None, asks)
    assert look(5.0, "controller").level is level


def test_a_middleware_that_is_not_there_is_told_and_does_not_end_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    [finding] = check_ros(Settings(), 0.1)
    assert (finding.name, finding.level) == ("RMW", Level.FAILURE)
    assert finding.text.startswith("RMW_IMPLEMENTATION=rmw_cyclonedds_cpp cannot be used: ")
    assert finding.remedy == "install rmw_cyclonedds_cpp, or unset RMW_IMPLEMENTATION"


def test_a_remapping_of_another_form_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match="--remap image:=/a b is refused: .*Couldn't parse remap rule"):
        look(0.1, remap=("image:=/a b",))
    assert main(["doctor", "--remap", "image=/camera"]) == 2
    assert "got 'image=/camera'" in capsys.readouterr().err
