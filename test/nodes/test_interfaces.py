"""The list of interfaces is what the node opens and what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from policy_bench import PolicyBench
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from flashvla_ros.core.settings import CameraSettings
from flashvla_ros.nodes.interfaces import INPUTS, OUTPUTS, RESET, Interface, image_topics

PAGE = Path(__file__).parents[2] / "docs" / "interface.md"


def type_name(message_type: type) -> str:
    return f"{message_type.__module__.split('.')[0]}/{message_type.__name__}"


def row_of(direction: str, interface: Interface) -> list[str]:
    quality = "reliable" if interface.reliable else "best effort"
    durability = "transient local" if interface.latched else "volatile"
    types = ", ".join(type_name(message_type) for message_type in interface.types)
    return [direction, f"`{interface.name}`", types, quality, durability, str(interface.depth)]


def test_the_page_has_every_row_in_this_order():
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (in|out|service) ", line)]
    topics = [("in", topic) for topic in INPUTS] + [("out", topic) for topic in OUTPUTS]
    service = ["service", f"`{RESET}`", "std_srvs/Trigger", "", "", ""]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table] == [
        *(row_of(*topic) for topic in topics),
        service,
    ]


@pytest.fixture
def bench():
    bench = PolicyBench(camera__names=["front", "wrist"])
    assert bench.configure()
    yield bench
    bench.close()


def test_the_node_opens_every_row_with_its_quality_of_service(bench):
    def readers() -> list[str]:
        return [info.node_name for info in bench.node.get_subscriptions_info_by_topic("/emergency_stop")]

    bench.until(lambda: "flashvla_emergency_stop" in readers(), "the stop's participant")
    cameras = image_topics(bench.node.settings.camera).values()
    assert ("/flashvla/reset", ["std_srvs/srv/Trigger"]) in bench.node.get_service_names_and_types()
    rows = [row for row in (*INPUTS, *OUTPUTS) if row.name != "image"] + list(cameras)
    for row in rows:
        name = row.name.replace("~", "/flashvla") if row.name.startswith(("~", "/")) else f"/{row.name}"
        infos = (
            bench.node.get_publishers_info_by_topic(name)
            if row in OUTPUTS
            else bench.node.get_subscriptions_info_by_topic(name)
        )
        [info] = [info for info in infos if info.node_name in ("flashvla", "flashvla_emergency_stop")]
        assert info.topic_type == type_name(row.type).replace("/", "/msg/")
        wanted = ReliabilityPolicy.RELIABLE if row.reliable else ReliabilityPolicy.BEST_EFFORT
        assert info.qos_profile.reliability == wanted, row.name
        wanted = DurabilityPolicy.TRANSIENT_LOCAL if row.latched else DurabilityPolicy.VOLATILE
        assert info.qos_profile.durability == wanted, row.name


def test_image_topics_follow_the_camera_parameters():
    assert [(camera, topic.name) for camera, topic in image_topics(CameraSettings()).items()] == [("image", "image")]
    topics = image_topics(CameraSettings(names=("front", "wrist"), compressed=True, reliable=True))
    assert [topic.name for topic in topics.values()] == ["front/image/compressed", "wrist/image/compressed"]
    assert {type_name(topic.type) for topic in topics.values()} == {"sensor_msgs/CompressedImage"}
    assert all(topic.reliable for topic in topics.values())
