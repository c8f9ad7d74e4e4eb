"""The recorder as users run it: a process of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from rosbags.rosbag2 import Reader, StoragePlugin, Writer

RECORD = """
import argparse, sys
from flashvla_ros.bags import record
parser = argparse.ArgumentParser()
record.add_arguments(parser)
sys.exit(record.run(parser.parse_args()))
"""


def start_recorder(bag: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RECORD, str(bag), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_recorder(recorder: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[str, str]:
    recorder.send_signal(number)
    return recorder.communicate(timeout=60)


@contextlib.contextmanager
def recording(bag: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    recorder = start_recorder(bag, *options)
    try:
        yield recorder
    finally:
        output, errors = stop_recorder(recorder)
        assert recorder.returncode == 0, output + errors


def copy_bag(
    bag: Path,
    target: Path,
    storage: str,
    topics: dict[str, str] | None = None,
    drop: Collection[tuple[str, int]] = (),
) -> Path:
    """Copy a bag with rosbags' reader and writer, without the dropped (topic, time) messages.

    `topics` gives some topics another name; an empty one leaves a topic out.
    """
    topics = topics or {}
    with Reader(bag) as reader, Writer(target, version=9, storage_plugin=StoragePlugin[storage.upper()]) as writer:
        connections = {
            connection.id: writer.add_connection(
                topics.get(connection.topic, connection.topic),
                connection.msgtype,
                msgdef=connection.msgdef.data,
                rihs01=connection.digest,
                offered_qos_profiles=connection.ext.offered_qos_profiles,
            )
            for connection in reader.connections
            if topics.get(connection.topic, connection.topic)
        }
        for connection, time_ns, data in reader.messages():
            if connection.id in connections and (connection.topic, time_ns) not in drop:
                writer.write(connections[connection.id], time_ns, data)
    return target
