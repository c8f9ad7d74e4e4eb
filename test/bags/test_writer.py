"""The writer's queue and thread."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
from bag_factory import STORE, STRING, text
from rosbags.highlevel import AnyReader

from flashvla_ros.bags.definitions import message_definition
from flashvla_ros.bags.writer import BagWriter
from flashvla_ros.core.errors import BagError


def add_topic(writer, name="/words"):
    return writer.add_topic(name, STRING, *message_definition(STRING), [])


def count(path):
    with AnyReader([path]) as reader:
        return reader.message_count


def test_everything_queued_is_written_at_close(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    topic = add_topic(writer)
    for index in range(500):
        writer.write(topic, index, bytes(STORE.serialize_cdr(text("x"), STRING)))
    writer.close()
    assert writer.written["/words"] == 500 == count(tmp_path / "bag")
    assert not writer.dropped


def test_a_message_is_written_when_it_comes_and_closing_waits_for_no_flush(tmp_path, monkeypatch):
    monkeypatch.setattr("flashvla_ros.bags.writer.FLUSH_S", 1e6)
    writer = BagWriter(tmp_path / "bag")
    writer.write(add_topic(writer), 0, bytes(STORE.serialize_cdr(text("x"), STRING)))
    deadline_s = time.monotonic() + 60
    while not writer.written["/words"] and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert writer.written["/words"] == 1
    writer.close()
    assert count(tmp_path / "bag") == 1


def test_a_full_queue_drops_counts_and_never_waits(tmp_path):
    writer = BagWriter(tmp_path / "bag", capacity_bytes=1000)
    topic = add_topic(writer)
    message = bytes(STORE.serialize_cdr(text("x" * 80), STRING))
    with writer._file:  # a disk that has stopped answering
        producer = threading.Thread(target=lambda: [writer.write(topic, index, message) for index in range(100)])
        producer.start()
        producer.join(timeout=60)
        assert not producer.is_alive()
    writer.close()
    assert writer.dropped["/words"] == 100 - writer.written["/words"]
    assert 1 <= writer.written["/words"] <= 1000 // len(message)
    assert f"flashvla_ros.dropped: /words={writer.dropped['/words']}" in (tmp_path / "bag/metadata.yaml").read_text()


def test_a_failing_disk_stops_the_recording_with_one_line(tmp_path, monkeypatch):
    writer = BagWriter(tmp_path / "bag")
    topic = add_topic(writer)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._writer.storage, "write", fail)
    writer.write(topic, 0, b"1234")
    writer._thread.join(timeout=60)
    with pytest.raises(BagError, match="No space left on device"):
        writer.check()
    writer.write(topic, 1, b"1234")
    assert writer.dropped["/words"] == 1


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot write the bag"):
        BagWriter(tmp_path / "file" / "bag")
    with pytest.raises(BagError, match="cannot write the bag .*: File name too long"):
        BagWriter(tmp_path / ("x" * 300))


def test_a_folder_that_is_removed_ends_the_recording(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    writer.check()
    shutil.rmtree(tmp_path / "bag")
    with pytest.raises(BagError, match="its folder is gone"):
        writer.check()
    with pytest.raises(BagError, match="its folder is gone"):
        writer.close()


def test_definitions_hold_every_nested_type():
    definition, type_hash = message_definition("flashvla_ros/msg/GateStatus")
    assert "MSG: std_msgs/Header" in definition
    assert "MSG: builtin_interfaces/Time" in definition
    assert type_hash.startswith("RIHS01_")
    with pytest.raises(BagError, match="nobodys_msgs"):
        message_definition("nobodys_msgs/msg/Nothing")


def test_a_definition_in_latin_1_is_taken_and_one_that_is_none_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "share" / "old_msgs" / "msg"
    folder.mkdir(parents=True)
    (folder / "Old.msg").write_bytes("float32 x  # M\u00fcller".encode("latin-1"))
    (folder / "Odd.msg").write_text("float32")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert message_definition("old_msgs/msg/Old")[0].startswith("float32 x")
    with pytest.raises(BagError, match="the definition of old_msgs/msg/Odd cannot be read"):
        message_definition("old_msgs/msg/Odd")
