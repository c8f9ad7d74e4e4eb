"""Bags that were made to do harm end in one line, soon; compressed ones off the straight path are read."""

from __future__ import annotations

import bz2
import dataclasses
import os
import re
import resource
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from bag_factory import GATE, IMAGE, START_NS, STORE, STRING, drive, fill, header, raw_image, write_bag
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flashvla_ros import __main__ as cli
from flashvla_ros.bags import expansion
from flashvla_ros.bags.definitions import SEPARATOR, Decoder, message_definition
from flashvla_ros.bags.expansion import zstd
from flashvla_ros.bags.reader import open_bag
from flashvla_ros.core.errors import BagError

GIGABYTES = bytes(1 << 30)
BLACK = np.zeros((1000, 1000, 3), np.uint8)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def times(path: Path) -> tuple[list[int], list[str]]:
    with open_bag(path) as bag:
        return [message.time_ns for message in bag.messages(["/image"])], list(bag.warnings)


def compressed_bag(path: Path, mode: CompressionMode, storage: str = "MCAP") -> Path:
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage])
    writer.set_compression(mode, CompressionFormat.ZSTD)
    fill(writer, drive(3))
    return path


# Recordings that are whole.


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
@pytest.mark.parametrize("case", ["one file", "decompressed by hand", "both forms", "without metadata"])
def test_a_compressed_file_is_read_wherever_it_lies(tmp_path: Path, storage: str, case: str) -> None:
    expected, _ = times(write_bag(tmp_path / "whole", drive(3)))
    bag = compressed_bag(tmp_path / "bag", CompressionMode.FILE, storage)
    [file] = bag.glob("*.zstd")
    if case in ("decompressed by hand", "both forms"):
        with zstd.open(file, "rb") as reader, file.with_suffix("").open("wb") as plain:
            shutil.copyfileobj(reader, plain)
    if case == "decompressed by hand":
        file.unlink()
    if case == "without metadata":
        (bag / "metadata.yaml").unlink()
    found, warnings = times(file if case == "one file" else bag)
    assert found == expected
    assert bool(warnings) == (case == "without metadata")


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
@pytest.mark.parametrize("case", ["whole", "one file", "without metadata"])
def test_compressed_messages_are_read_without_being_told_of(tmp_path: Path, storage: str, case: str) -> None:
    expected, _ = times(write_bag(tmp_path / "whole", drive(3)))
    bag = compressed_bag(tmp_path / "bag", CompressionMode.MESSAGE, storage)
    if case == "without metadata":
        (bag / "metadata.yaml").unlink()
    path = next(file for file in bag.iterdir() if file.suffix != ".yaml") if case == "one file" else bag
    with open_bag(path) as opened:
        messages = list(opened.messages(["/image"]))
        assert [message.time_ns for message in messages] == expected
        assert opened.decode(messages[0]).encoding == "rgb8"


# Recordings that are not.


def chunked(name: bytes, data: bytes, told: int) -> bytes:
    """An MCAP file with one chunk, which says that it unfolds to `told` bytes, and no end."""
    content = struct.pack("<QQQII", 0, 1, told, 0, len(name)) + name + struct.pack("<Q", len(data)) + data
    return (
        b"\x89MCAP0\r\n" + b"\x01" + struct.pack("<QII", 8, 0, 0) + b"\x06" + struct.pack("<Q", len(content)) + content
    )


def streamed(data: bytes) -> bytes:
    """A zstd frame whose header does not say what it unfolds to."""
    compressor = zstd.ZstdCompressor()
    return b"".join([compressor.compress(data[:9]), compressor.compress(data[9:]), compressor.flush()])


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    one = zstd.compress(GIGABYTES)
    small = zstd.compress(GIGABYTES[: 1 << 27])
    packed = lz4.frame.compress(GIGABYTES)
    return {
        "zstd": chunked(b"zstd", one, len(GIGABYTES)),
        "lying zstd": chunked(b"zstd", one, 1000),
        "streamed zstd": chunked(b"zstd", streamed(GIGABYTES), 1000),
        "many frames": chunked(b"zstd", small * 20, 1000),
        "tiny frames": chunked(b"zstd", zstd.compress(b"") * 2_000_000, 1000),
        "lz4": chunked(b"lz4", packed, 1000),
        "broken": chunked(b"zstd", one, len(GIGABYTES)) + b"\x05\xff\xff",
        "record": b"\x89MCAP0\r\n\x03" + struct.pack("<Q", 1 << 40),
    }


@pytest.mark.parametrize(
    "kind", ["zstd", "lying zstd", "streamed zstd", "many frames", "tiny frames", "lz4", "broken", "record"]
)
def test_a_chunk_that_unfolds_to_gigabytes_is_refused(tmp_path: Path, kind: str, bombs: dict[str, bytes]) -> None:
    path = tmp_path / "bag.mcap"
    path.write_bytes(bombs[kind])
    if kind == "record":
        os.truncate(path, 1 << 40)
    _refused(path, "of more than 256 MB: it is damaged, or made to do harm")


@pytest.mark.parametrize("trick", ["attachment", "endless record", "tiny frame"])
def test_a_chunk_that_only_the_index_finds_is_refused(
    tmp_path: Path, trick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "MOST_BYTES", 1_000_000)
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        if trick == "tiny frame":
            writer.storage.compressor = lambda data: streamed(b"") + zstd.compress(data)
        to = writer.add_connection("/image", IMAGE, typestore=STORE)
        writer.write(to, START_NS, STORE.serialize_cdr(raw_image(BLACK, START_NS), IMAGE))
    [file] = (tmp_path / "bag").glob("*.mcap")
    data = bytearray(file.read_bytes())
    chunk = 17 + int.from_bytes(data[9:17], "little")
    assert data[chunk] == 6
    if trick != "tiny frame":
        data[chunk] = 9 if trick == "attachment" else 0x7F
    if trick == "endless record":
        data[chunk + 1 : chunk + 9] = struct.pack("<Q", 1 << 40)
    file.write_bytes(data)
    with open_bag(file) as opened, pytest.raises(BagError, match="bag.mcap has a chunk of more than 1 MB"):
        list(opened.messages(["/image"]))


@pytest.mark.parametrize(
    "compress",
    [bz2.compress, lz4.frame.compress, lambda data: bz2.compress(b"") + bz2.compress(data)],
    ids=["bz2", "lz4", "two streams"],
)
def test_a_ros_1_chunk_that_unfolds_to_too_much_is_refused(
    tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "MOST_BYTES", 1_000_000)
    writer, store = Writer1(tmp_path / "ros1.bag"), get_typestore(Stores.ROS1_NOETIC)
    writer.set_compression(writer.CompressionFormat["LZ4" if compress is lz4.frame.compress else "BZ2"])
    writer.compressor = compress
    with writer:
        writer.write(writer.add_connection("/words", STRING, typestore=store), 1, bytes(3_000_000))
    with (
        open_bag(tmp_path / "ros1.bag") as bag,
        pytest.raises(BagError, match=r"ros1\.bag has a chunk of more than 1 MB"),
    ):
        list(bag.messages(["/words"]))


def test_a_file_that_unfolds_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bag.mcap.zstd"
    path.write_bytes(zstd.compress(GIGABYTES))
    _refused(path, "unfolds to more than there is room for, or than a recording does")
    path.write_bytes(zstd.compress(b"x" * 99)[:-3])
    _refused(path, "is damaged")


@pytest.mark.parametrize("before", [b"", b"x"])
def test_a_message_that_unfolds_to_gigabytes_ends_the_bag_with_a_warning(tmp_path: Path, before: bytes) -> None:
    bag = write_bag(tmp_path / "bag", drive(3), "sqlite3")
    [file] = bag.glob("*.db3")
    database = sqlite3.connect(file)
    database.execute(
        "UPDATE messages SET data = ? WHERE id = 3", ((streamed(before) if before else b"") + zstd.compress(GIGABYTES),)
    )
    database.commit()
    database.close()
    found, warnings = times(bag)
    assert len(found) == 1
    assert "a compressed message unfolds to more than 256 MB" in warnings[-1]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE messages SET data = zeroblob(2000000) WHERE id = 2", "message of more than 1 MB"),
        ("CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n", "has views"),
        (
            "ALTER TABLE messages RENAME TO m; CREATE VIEW messages AS WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i AS id, 1 AS topic_id, i AS timestamp, 'x' AS data FROM n",
            "has views",
        ),
        ("DROP TABLE messages", "cannot be read"),
    ],
)
def test_a_database_that_was_made_to_do_harm_is_refused(
    tmp_path: Path, statement: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "MOST_BYTES", 1_000_000)
    bag = write_bag(tmp_path / "bag", drive(3), "sqlite3")
    [file] = bag.glob("*.db3")
    database = sqlite3.connect(file)
    database.executescript(statement)
    database.close()
    _refused(bag, words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("[" * 100_000, "metadata.yaml is not YAML"),
        ("- " * 100_000, "metadata.yaml is not YAML"),
        (f"{LAUGHS}rosbag2_bagfile_information: {{relative_file_paths: *a11}}", "more than 200000 values"),
        (f"{LAUGHS}rosbag2_bagfile_information: {{compression_mode: *a11}}", "more than 200000 values"),
        ("rosbag2_bagfile_information: {relative_file_paths: 7}", "is not the metadata of a bag"),
        ("rosbag2_bagfile_information: {relative_file_paths: [[a]]}", "is not the metadata of a bag"),
        ("PIPE", "a device or a pipe"),
        ("FOLDER", "Is a directory"),
    ],
)
def test_metadata_that_was_made_to_do_harm_is_said_and_not_needed(tmp_path: Path, metadata: str, words: str) -> None:
    bag = write_bag(tmp_path / "bag", drive(3))
    file = bag / "metadata.yaml"
    file.unlink()
    if metadata == "PIPE":
        os.mkfifo(file)
    elif metadata == "FOLDER":
        file.mkdir()
    else:
        file.write_text(metadata)
    started_s = time.monotonic()
    found, [warning] = times(bag)
    assert time.monotonic() - started_s < 10.0
    assert len(found) == 3
    assert words in warning
    assert "\n" not in warning
    assert len(warning) < 500


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pipe", "is a device or a pipe"),
        ("unreadable", "cannot be read: Input/output error"),
        ("endless", "is a device or a pipe"),
        ("loop", "Too many levels of symbolic links"),
        ("long", "File name too long"),
        ("null", "null"),
        ("missing", "there is no bag"),
        ("folder of folders", "has no .mcap or .db3 file"),
        ("folder of loops", "has no .mcap or .db3 file"),
        ("folder of pipes", "has no .mcap or .db3 file"),
        ("pointer", "Git LFS pointer, .* fetch it with git lfs pull"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "bag.mcap"
    inside = tmp_path / "bag" / "bag.mcap"
    inside.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "folder of folders":
        inside.mkdir()
    elif kind == "folder of loops":
        inside.symlink_to(inside)
    elif kind == "folder of pipes":
        os.mkfifo(inside)
    paths = {"endless": Path("/dev/zero"), "long": tmp_path / ("x" * 300), "null": Path("a\0b")}
    _refused(inside.parent if kind.startswith("folder") else paths.get(kind, path), words)


OWN = message_definition(GATE)[0]
BOMB = f"{SEPARATOR}MSG: flashvla_ros/E\nuint8 a"


@pytest.mark.timeout(120)  # unrolled, one of them took minutes
@pytest.mark.parametrize(
    ("topic", "kind", "definition", "words"),
    [
        ("/instruction", STRING, "int32 data", "std_msgs/msg/String cannot be used: .* different definition"),
        ("/image", IMAGE, "string height", "sensor_msgs/msg/Image cannot be used: .* different definition"),
        ("/flashvla/gate", GATE, "int32 data", "GateStatus in the bag is of no release: see its field header"),
        ("/flashvla/gate", GATE, OWN.replace("float64[] action ", "string action "), "see its field action"),
        ("/flashvla/gate", GATE, OWN.replace("string settings_digest", "string x"), "see its field settings_digest"),
        ("/flashvla/gate", GATE, f"E[100000] x\n{OWN}{BOMB}", "see its field x"),
        ("/flashvla/gate", GATE, f"string[100000] x\n{OWN}", "see its field x"),
    ],
)
def test_a_definition_that_changes_a_type_is_refused(
    tmp_path: Path, topic: str, kind: str, definition: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        hostile = writer.add_connection(topic, kind, msgdef=definition, rihs01="RIHS01_0")
        writer.write(hostile, START_NS - 1, b"\0\1\0\0" + bytes(200_000))
        for name, known, time_ns, content in drive(3):
            if name != topic:
                to = next((c for c in writer.connections if c.topic == name), None)
                to = to or writer.add_connection(name, known, typestore=STORE)
                writer.write(to, time_ns, STORE.serialize_cdr(content, known))
    assert cli.main(["replay", str(tmp_path / "bag")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


@pytest.mark.parametrize(("last", "more"), [("float64 step_s", ""), ("float64[] answer", "string[] later")])
def test_the_layouts_of_other_releases_are_read(last: str, more: str) -> None:
    definition = OWN[: OWN.index("\n", OWN.index(last))] + f"\n{more}{OWN[OWN.index(SEPARATOR) :]}"
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg(definition, GATE))
    fields = dataclasses.fields(store.types[GATE])
    texts = {field.name: "" for field in fields if field.type == "str"}
    values = {
        field.name: [] if field.name == "later" else np.empty(0) if "array" in str(field.type) else 0
        for field in fields
    }
    status = store.types[GATE](**{**values, **texts, "header": header(0), "step": 7})
    decoded = Decoder({GATE: ("MSG", definition)}).decode(bytes(store.serialize_cdr(status, GATE)), GATE)
    assert decoded.step == 7 and hasattr(decoded, "answer") == bool(more)


def test_types_of_others_are_not_decoded() -> None:
    with pytest.raises(BagError, match="evil/msg/E is not a type that is read here"):
        Decoder({"evil/msg/E": ("MSG", "int32 x")}).decode(bytes(8), "evil/msg/E")


def _refused(path: Path, words: str) -> None:
    before, started_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(BagError, match=words) as refusal, open_bag(path):
        pass
    assert time.monotonic() - started_s < 10.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900_000  # kilobytes
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
