"""Whole, broken and odd recordings."""

from __future__ import annotations

import pytest
from bag_factory import IMAGE, START_NS, STORE, STRING, drive, fill, text, write_bag
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rclpy.serialization import serialize_message
from rosbags.convert.converter import convert
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import JointState

from flashvla_ros.bags.definitions import Decoder, message_definition
from flashvla_ros.bags.reader import open_bag
from flashvla_ros.bags.topics import find_topics
from flashvla_ros.core.errors import BagError


def stamps(path, topics=("/image",)):
    with open_bag(path) as bag:
        return [message.time_ns for message in bag.messages(topics)], list(bag.warnings)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_both_storages_read_alike(tmp_path, storage):
    path = write_bag(tmp_path / "bag", drive(5), storage)
    with open_bag(path) as bag:
        assert bag.topics["/image"].type == IMAGE
        assert bag.topics["/image"].count == 5
        messages = list(bag.messages(["/image", "/instruction"]))
        assert [message.topic for message in messages] == ["/instruction"] + ["/image"] * 5
        image = bag.decode(messages[1])
        assert (image.width, image.height, image.encoding) == (64, 48, "rgb8")
        assert bag.decode(messages[0]).data == "open the drawer"
        assert bag.warnings == []


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_folder_without_metadata_is_read_with_a_warning(tmp_path, storage):
    path = write_bag(tmp_path / "bag", drive(5), storage)
    (path / "metadata.yaml").unlink()
    times, warnings = stamps(path)
    assert len(times) == 5
    assert len(warnings) == 1
    assert "no metadata.yaml" in warnings[0]


def test_a_single_file_is_a_bag(tmp_path):
    path = write_bag(tmp_path / "bag", drive(5))
    assert stamps(path / "bag.mcap") == (stamps(path)[0], [])


@pytest.mark.parametrize("metadata", ["", "rosbag2_bagfile_information: 7", "\t{"])
def test_wrong_metadata_is_said_and_not_needed(tmp_path, metadata):
    path = write_bag(tmp_path / "bag", drive(5))
    (path / "metadata.yaml").write_text(metadata)
    times, warnings = stamps(path)
    assert len(times) == 5
    assert "reading its files directly" in warnings[0]


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_truncated_mcap_is_read_up_to_the_break(tmp_path, with_metadata):
    path = write_bag(tmp_path / "bag", drive(12, size=(480, 640)))
    whole, _ = stamps(path)
    file = path / "bag.mcap"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])
    if not with_metadata:
        (path / "metadata.yaml").unlink()
    times, warnings = stamps(path)
    assert 6 <= len(times) < 12
    assert times == whole[: len(times)]
    assert f"{times[-1] / 1e9:.3f} s" in warnings[-1]
    assert "breaks off at byte" in warnings[-1]
    assert all("\n" not in warning for warning in warnings)


def test_every_truncation_gives_a_prefix_or_one_line(tmp_path):
    """Wherever a file is cut, what comes out is a prefix of what went in, or a single clear line."""
    path = write_bag(tmp_path / "bag", drive(3))
    whole, _ = stamps(path)
    data = (path / "bag.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    for length in range(0, len(data), len(data) // 60):
        cut.write_bytes(data[:length])
        try:
            times, warnings = stamps(cut)
        except BagError as error:
            lines = str(error)
        else:
            assert times == whole[: len(times)]
            lines = warnings[-1]
        assert "cut.mcap" in lines
        assert "\n" not in lines


def test_a_damaged_chunk_ends_the_bag_with_a_warning(tmp_path):
    path = write_bag(tmp_path / "bag", drive(12, size=(480, 640)))
    file = path / "bag.mcap"
    data = bytearray(file.read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 3_000_000):
        data[position] ^= 0xFF
    file.write_bytes(data)
    times, warnings = stamps(path)
    assert 1 <= len(times) < 12
    assert times[0] == START_NS
    assert "damaged" in warnings[-1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("missing", None, "there is no bag"), ("notes.txt", b"hello", "notes.txt"), ("bag.db3", b"hello" * 99, "bag.db3")],
)
def test_what_is_no_bag_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BagError, match=words) as refusal, open_bag(path):
        pass
    assert "\n" not in str(refusal.value)


def test_an_empty_folder_is_no_bag(tmp_path):
    with pytest.raises(BagError, match=r"is not a bag: it has no \.mcap or \.db3 file"), open_bag(tmp_path):
        pass


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    messages = drive(11, instruction=None)
    for number, message in enumerate(messages):
        part = write_bag(tmp_path / f"bag_{number}", [message]) / f"bag_{number}.mcap"
        data = part.read_bytes()
        (folder / part.name).write_bytes(data[: data.rindex(b"\x89MCAP0")])  # so that each file is broken off
    times, _ = stamps(folder)
    assert times == [message[2] for message in messages]


@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_compressed_bags_are_read(tmp_path, mode):
    whole = write_bag(tmp_path / "whole", drive(3))
    writer = Writer(tmp_path / "small", version=9, storage_plugin=StoragePlugin.SQLITE3)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    fill(writer, drive(3))
    assert stamps(tmp_path / "small") == stamps(whole)


def test_ros_1_bags_are_read(tmp_path):
    whole = write_bag(tmp_path / "whole", drive(3))
    convert([whole], tmp_path / "ros1.bag", "mcap", 9, None, "none", None, get_typestore(Stores.ROS1_NOETIC), *[()] * 4)
    assert stamps(tmp_path / "ros1.bag") == stamps(whole)
    with open_bag(tmp_path / "ros1.bag") as bag:
        (first, *_) = bag.messages(["/image"])
        assert bag.decode(first).encoding == "rgb8"


def test_topics_whose_qos_is_written_differently_in_the_metadata_are_read(tmp_path):
    """As rosbag2 before Jazzy wrote them; rosbags' own reader of folders passes over such topics."""
    path = write_bag(tmp_path / "bag", drive(5))
    metadata = path / "metadata.yaml"
    profile = (
        "history: 3, depth: 0, reliability: 1, durability: 2, liveliness: 1, avoid_ros_namespace_conventions: false"
    )
    times = "deadline: {sec: 1, nsec: 0}, lifespan: {sec: 1, nsec: 0}, liveliness_lease_duration: {sec: 1, nsec: 0}"
    text = metadata.read_text().replace("offered_qos_profiles: []", f'offered_qos_profiles: "[{{{profile}, {times}}}]"')
    assert "nsec" in text
    metadata.write_text(text)
    assert len(stamps(path)[0]) == 5


def test_a_definition_that_cannot_be_parsed_matters_only_to_its_own_topic(tmp_path):
    path = tmp_path / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kind = "example_interfaces/srv/AddTwoInts_Event"
        odd = writer.add_connection("/add/_service_event", kind, msgdef="MSG: nonsense {", rihs01="RIHS01_0")
        good = writer.add_connection("/words", STRING, typestore=STORE)
        writer.write(odd, 1, b"1234")
        writer.write(good, 2, STORE.serialize_cdr(text("hello"), STRING))
    with open_bag(path) as bag:
        first, second = bag.messages(bag.topics)
        assert bag.decode(second).data == "hello"
        with pytest.raises(BagError, match="the definition of example_interfaces/srv/AddTwoInts_Event") as refusal:
            bag.decode(first)
    assert "\n" not in str(refusal.value)


def write_mcap(path, schema=("ros2msg", True), foreign=None, **options):
    """One image topic, the way other tools than rosbag2 write it; `foreign` is (encoding, schema, its encoding)."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, **options)
        writer.start("ros2")
        if foreign:
            encoding, name, schema_encoding = foreign
            other = writer.register_channel("/other", encoding, writer.register_schema(name, schema_encoding, b"\x0a"))
            writer.add_message(other, START_NS, b"{}", START_NS)
        schema_encoding, has_text = schema
        text = message_definition(IMAGE)[0].encode() if has_text else b""
        number = writer.register_schema(IMAGE, schema_encoding, text) if schema_encoding is not None else 0
        channel = writer.register_channel("/image", "cdr", number)
        for _, kind, time_ns, message in drive(3, instruction=None):
            writer.add_message(channel, time_ns, bytes(STORE.serialize_cdr(message, kind)), time_ns)
        writer.finish()
    return path


@pytest.mark.parametrize(
    "foreign",
    [
        ("protobuf", "foxglove.SceneUpdate", "protobuf"),
        ("json", "Imu", "jsonschema"),
        ("cdr", "foxglove::SceneUpdate", "omgidl"),
        ("cdr", "RealsenseMetadata", ""),
        ("ros1", "std_msgs/String", "ros1msg"),
    ],
    ids=lambda foreign: foreign[2] or "empty",
)
def test_topics_of_other_serialisations_do_no_harm(tmp_path, foreign):
    """As loggers write them that keep data of their own beside ROS messages; ros2 bag play long refused these."""
    path = write_mcap(tmp_path / "mixed.mcap", foreign=foreign)
    with open_bag(path) as bag:
        assert [bag.decode(message).height for message in bag.messages(["/image"])] == [48] * 3
        assert bag.warnings == []


@pytest.mark.parametrize(
    "options",
    [
        {"schema": ("", False)},
        {"index_types": IndexType.NONE, "use_statistics": False, "repeat_channels": False, "repeat_schemas": False},
        {"use_chunking": False, "compression": CompressionType.NONE, "index_types": IndexType.NONE},
    ],
    ids=["definition left empty", "no index", "no chunks"],
)
def test_what_other_writers_of_mcap_leave_out_is_not_needed(tmp_path, options):
    with open_bag(write_mcap(tmp_path / "bare.mcap", **options)) as bag:
        assert [bag.decode(message).height for message in bag.messages(["/image"])] == [48] * 3


def test_a_topic_without_a_type_is_said_to_have_none(tmp_path):
    """As rosbag2's MCAP plug-in wrote them at first."""
    path = write_mcap(tmp_path / "old.mcap", schema=(None, False))
    words = "/image in .* is a message without a schema, not sensor_msgs/msg/Image"
    with open_bag(path) as bag, pytest.raises(BagError, match=words):
        find_topics(bag, {}, "/flashvla", ())


def test_a_message_of_other_bytes_than_its_type_is_named(tmp_path):
    path = tmp_path / "bag"
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/words", STRING, typestore=STORE)
        writer.write(topic, 2 * 10**9, b"\0\1\0\0\xff\xff\xff\xff")
    with open_bag(path) as bag:
        (message,) = bag.messages(["/words"])
        with pytest.raises(BagError, match=r"/words at 2\.000 s: it is not a std_msgs/msg/String"):
            bag.decode(message)


def test_files_that_only_the_metadata_has_are_named(tmp_path):
    path = write_bag(tmp_path / "bag", drive(5))
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace("relative_file_paths:\n", "relative_file_paths:\n  - bag_1.mcap\n"))
    times, warnings = stamps(path)
    assert len(times) == 5
    assert warnings == [f"{path} lacks bag_1.mcap, which its metadata.yaml names"]
    metadata.write_text(text.replace("- bag.mcap", "- other.mcap"))
    with pytest.raises(BagError, match=r"none of the files that its metadata\.yaml names: other\.mcap"), open_bag(path):
        pass


def test_short_type_names_are_understood(tmp_path):
    path = tmp_path / "words.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()  # without the profile ros2
        schema = writer.register_schema("std_msgs/String", "ros2msg", b"string data")
        channel = writer.register_channel("/words", "cdr", schema)
        writer.add_message(channel, 5, bytes(STORE.serialize_cdr(text("hello"), STRING)), 5)
        writer.finish()
    with open_bag(path) as bag:
        assert bag.topics["/words"].type == STRING
        (message,) = bag.messages(["/words"])
        assert bag.decode(message).data == "hello"
        assert bag.warnings == []


@pytest.mark.parametrize("name", ["a", "abcde"])
def test_what_serialize_message_leaves_behind_a_message_does_no_harm(name):
    definition, _ = message_definition("sensor_msgs/msg/JointState")
    decoder = Decoder({"sensor_msgs/msg/JointState": ("MSG", definition)})
    data = serialize_message(JointState(name=[name], position=[0.5]))
    assert decoder.decode(data, "sensor_msgs/msg/JointState").position.tolist() == [0.5]
    with pytest.raises(BagError, match="is not a sensor_msgs"):
        decoder.decode(data + bytes(4), "sensor_msgs/msg/JointState")
