"""Recording through real DDS, from a process of its own as users run it."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import pytest
import yaml
from mcap.reader import make_reader
from recording import start_recorder, stop_recorder
from rosbags.highlevel import AnyReader

from flashvla_ros.bags.recovery import BrokenMcap

rclpy = pytest.importorskip("rclpy")

pytestmark = pytest.mark.timeout(400)

from geometry_msgs.msg import TwistStamped  # noqa: E402
from rclpy.event_handler import SubscriptionEventCallbacks  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.serialization import deserialize_message  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Bool, String  # noqa: E402

from flashvla_ros import __main__ as cli  # noqa: E402
from flashvla_ros.bags import record  # noqa: E402
from flashvla_ros.bags.recorder import Selection  # noqa: E402
from flashvla_ros.nodes import interfaces  # noqa: E402
from flashvla_ros.nodes.emergency import EmergencyStop  # noqa: E402

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
PATIENCE_S = 120.0  # for a process that starts on a machine with other work
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def test_topics_that_are_named_twice_add_up():
    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    assert parser.parse_args(["bag", "--topics", "a", "b", "--topics", "/c"]).topics == ["/a", "/b", "/c"]


@pytest.fixture
def talker():
    """A node called /flashvla."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("flashvla", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


@pytest.fixture
def start():
    """Starts recorders; none outlives its test."""
    recorders = []

    def start(*arguments):
        recorders.append(start_recorder(*arguments))
        return recorders[-1]

    yield start
    for recorder in recorders:
        recorder.kill()
        recorder.communicate()


def publish_images(publisher, count: int, hz: float = 60.0) -> None:
    wait_for_subscriber(publisher)
    for index in range(count):
        publisher.publish(Image(width=64, height=48, step=192, encoding="rgb8", data=bytes([index]) * 9216))
        time.sleep(1 / hz)


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_for_subscriber(publisher) -> None:
    wait_for(publisher.get_subscription_count, "the recorder did not subscribe")


def wait_until_written(bag: Path, topic: str, count: int = 1) -> None:
    """The recorder hands what it has to the operating system twice a second."""
    wait_for(lambda: BrokenMcap(list(bag.glob("*.mcap"))).counts[topic] >= count, f"{topic} is not written")


def read(bag: Path) -> dict[str, list]:
    messages: dict[str, list] = {}
    with AnyReader([bag]) as reader:
        for connection, _, data in reader.messages():
            messages.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return messages


def test_ctrl_c_leaves_a_complete_rosbag2_of_the_nodes_topics(talker, start, tmp_path):
    bag = tmp_path / "bag"
    images = talker.create_publisher(Image, "image", BEST_EFFORT)
    overlay = talker.create_publisher(String, "flashvla/overlay", 1)
    settings = talker.create_publisher(String, "~/settings", LATCHED)
    settings.publish(String(data="published before the recorder started"))
    recorder = start(bag)
    publish_images(images, 30)
    talker.declare_parameter("gate.delta", 0.5)
    talker.set_parameters([rclpy.Parameter("gate.delta", value=0.9)])
    overlay.publish(String(data="left out"))
    wait_until_written(bag, "/image", 30)
    wait_until_written(bag, "/flashvla/settings")
    wait_until_written(bag, "/parameter_events")
    output, errors = stop_recorder(recorder)
    assert recorder.returncode == 0
    assert errors == ""
    assert "/image: 30 messages" in output
    messages = read(bag)
    assert [int(image.data[0]) for image in messages["/image"]] == list(range(30))
    assert messages["/flashvla/settings"][0].data == "published before the recorder started"
    assert messages["/parameter_events"][-1].changed_parameters[0].value.double_value == 0.9
    assert "/flashvla/overlay" not in messages
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    topics = {
        topic["topic_metadata"]["name"]: topic["topic_metadata"] for topic in information["topics_with_message_count"]
    }
    assert information["storage_identifier"] == "mcap"
    assert topics["/image"]["offered_qos_profiles"][0]["reliability"] == "best_effort"
    assert topics["/flashvla/settings"]["offered_qos_profiles"][0]["durability"] == "transient_local"
    assert topics["/image"]["type_description_hash"].startswith("RIHS01_")


def test_the_emergency_stop_and_what_a_guard_passes_on_are_recorded(talker):
    stop = EmergencyStop(talker, print, SubscriptionEventCallbacks())
    guard = rclpy.create_node("guard", context=talker.context)
    publishers = [talker.create_publisher(TwistStamped, "command_unguarded", 1)]
    publishers += [guard.create_publisher(TwistStamped, name, 1) for name in ("command", "other")]
    end_s = time.monotonic() + PATIENCE_S
    wanted = {"/emergency_stop", "/command", "/command_unguarded"}
    while not wanted <= (found := Selection().of(talker).keys()) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert found & {*wanted, "/other"} == wanted
    stop.close()
    guard.destroy_node()


def test_a_node_that_takes_the_place_of_one_that_was_killed_is_recorded(talker, start, tmp_path):
    context = rclpy.Context()  # a participant of its own; talker, for all DDS knows, is the one that was killed
    rclpy.init(context=context)
    successor = rclpy.create_node("flashvla", context=context)
    words = successor.create_publisher(String, "words", LATCHED)
    words.publish(String(data="go"))
    recorder = start(tmp_path / "bag")
    wait_until_written(tmp_path / "bag", "/words")
    stop_recorder(recorder)
    successor.destroy_node()
    context.try_shutdown()
    assert [message.data for message in read(tmp_path / "bag")["/words"]] == ["go"]


@pytest.fixture
def listener():
    """A policy node in a namespace, with other names for its inputs."""
    context = rclpy.Context()
    arguments = ["--ros-args", "-r", "emergency_stop:=halt", "-r", "instruction:=/task"]
    rclpy.init(context=context)
    node = rclpy.create_node("flashvla", namespace="arm", context=context, cli_args=arguments)
    for topic in (interfaces.EMERGENCY_STOP, interfaces.INSTRUCTION):
        node.create_subscription(topic.type, topic.name, print, topic.qos)
    yield node
    node.destroy_node()
    context.try_shutdown()


@pytest.fixture
def come():
    """Makes a node that DDS has yet to find."""
    context = rclpy.Context()

    def come():
        rclpy.init(context=context)
        return rclpy.create_node("newcomer", context=context)

    yield come
    context.try_shutdown()


def test_a_press_by_who_comes_for_that_alone_is_recorded(listener, come, start, tmp_path):
    recorder = start(tmp_path / "bag", "--node", "/arm/flashvla")
    wait_for(lambda: listener.count_subscribers("/arm/halt") == 2, "the recorder did not subscribe")
    button = come()
    stop = button.create_publisher(Bool, "/arm/halt", 10)
    wait_for(lambda: stop.get_subscription_count() == 2, "the button found nobody")
    stop.publish(Bool(data=True))
    time.sleep(1.0)
    button.destroy_node()
    wait_until_written(tmp_path / "bag", "/arm/halt")
    stop_recorder(recorder)
    assert [message.data for message in read(tmp_path / "bag")["/arm/halt"]] == [True]
    with AnyReader([tmp_path / "bag"]) as reader:
        topics = {connection.topic: connection.ext.offered_qos_profiles for connection in reader.connections}
    assert [qos.reliability.name for qos in topics["/arm/halt"]] == ["RELIABLE"]
    assert "/task" not in topics  # replay asks for an instruction where the bag has none


def test_what_was_latched_by_who_is_found_after_the_recorders_reader_is_recorded(listener, come, start, tmp_path):
    recorder = start(tmp_path / "bag", "--node", "/arm/flashvla")
    wait_for(lambda: listener.count_subscribers("/task") == 2, "the recorder did not subscribe")
    words = come().create_publisher(String, "/task", LATCHED)
    words.publish(String(data="go"))
    wait_until_written(tmp_path / "bag", "/task")
    stop_recorder(recorder)
    assert [message.data for message in read(tmp_path / "bag")["/task"]] == ["go"]


def test_the_recording_is_whole_for_the_mcap_library_too(talker, start, tmp_path):
    words = talker.create_publisher(String, "words", 10)
    recorder = start(tmp_path / "bag", "--topics", "/words")
    wait_for_subscriber(words)
    for index in range(20):
        words.publish(String(data=str(index)))
        time.sleep(0.05)
    wait_until_written(tmp_path / "bag", "/words", 20)
    stop_recorder(recorder, signal.SIGTERM)
    with (tmp_path / "bag" / "bag.mcap").open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        messages = list(reader.iter_messages(topics=["/words"]))
        summary = reader.get_summary()
        metadata = [record.name for record in reader.iter_metadata()]
    assert [deserialize_message(message.data, String).data for _, _, message in messages] == [str(n) for n in range(20)]
    (schema,) = summary.schemas.values()
    (channel,) = summary.channels.values()
    assert (schema.name, schema.encoding, channel.message_encoding) == ("std_msgs/msg/String", "ros2msg", "cdr")
    assert "string data" in schema.data.decode()
    assert "offered_qos_profiles" in channel.metadata
    assert metadata == ["rosbag2"]
    assert summary.statistics.chunk_count >= 2  # closed twice a second


def test_topics_that_are_named_are_recorded_or_said(tmp_path, monkeypatch, capsys):
    selections = []

    def record_into(writer, selection, _):
        selections.append(selection)
        writer.written["/arm/overlay"] = 1

    monkeypatch.setattr("flashvla_ros.bags.recorder.record_into", record_into)
    assert cli.main(["record", str(tmp_path / "named"), "--topics", "/arm/overlay", "/wrods"]) == 0
    assert "nothing of /wrods was recorded" in (said := capsys.readouterr().err) and "overlay" not in said
    assert cli.main(["record", str(tmp_path / "all"), "--all"]) == 0
    assert [one.exclude and one.exclude.pattern for one in selections] == [None, "/overlay"]
    assert cli.main(["record", str(tmp_path / "both"), "--all", "--topics", "/a"]) == 2


def test_kill_leaves_all_but_the_last_second(talker, start, tmp_path):
    from flashvla_ros.bags.reader import open_bag

    bag = tmp_path / "bag"
    images = talker.create_publisher(Image, "image", BEST_EFFORT)
    recorder = start(bag, "--topics", "/image")
    publish_images(images, 120)
    last_ns = time.time_ns()
    recorder.kill()
    recorder.communicate()
    with open_bag(bag) as recording:
        times = [message.time_ns for message in recording.messages(["/image"])]
        assert any("no metadata.yaml" in warning for warning in recording.warnings)
    assert len(times) >= 60
    assert last_ns - times[-1] < 1_000_000_000


def test_a_bag_is_never_overwritten(start, tmp_path):
    recorder = start(tmp_path)
    _, errors = recorder.communicate(timeout=PATIENCE_S)
    assert recorder.returncode != 0
    assert f"{tmp_path} exists already" in errors
