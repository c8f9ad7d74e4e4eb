"""Write a rosbag2 folder from a thread of its own: callers never wait, and a killed process loses under a second."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import StoragePlugin, Writer

from flashvla_ros.core.errors import BagError

FLUSH_S = 0.5


class BagWriter:
    """A rosbag2 folder with MCAP storage under construction.

    Messages wait in a queue of at most `capacity_bytes`; what does not fit is dropped and counted, never waited for.
    Every half second what has been written is closed as an MCAP chunk and handed to the operating system, so it
    stays readable whatever happens to this process.

    Attributes:
        written: Topic to number of messages written.
        dropped: Topic to number of messages dropped.

    Raises:
        BagError: `path` exists or cannot be made.
    """

    def __init__(self, path: Path, capacity_bytes: int = 256 * 2**20) -> None:
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._capacity = capacity_bytes
        self._queued_bytes = 0
        self._queue: deque[tuple[Connection, int, bytes]] = deque()
        self._wake = threading.Condition()
        self._file = threading.Lock()  # rosbags' writer is not thread-safe
        self._closing = False
        self._error: OSError | None = None
        try:
            if path.exists():
                raise BagError(f"{path} exists already; choose another name for the bag or delete it")
            self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except OSError as error:  # such as a name that is too long
            raise BagError(f"cannot write the bag {path}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._run, name="bag-writer", daemon=True)
        self._thread.start()

    def add_topic(self, name: str, type_name: str, definition: str, type_hash: str, qos: Sequence[Qos]) -> Connection:
        """Declare a topic; its messages are written with :meth:`write`."""
        with self._file:
            return self._writer.add_connection(
                name, type_name, msgdef=definition, rihs01=type_hash, offered_qos_profiles=qos
            )

    def write(self, topic: Connection, time_ns: int, data: bytes) -> None:
        """Queue one serialised message, or drop and count it where the queue is full."""
        with self._wake:
            if self._error or self._closing or self._queued_bytes + len(data) > self._capacity:
                self.dropped[topic.topic] += 1
                return
            self._queue.append((topic, time_ns, data))
            self._queued_bytes += len(data)
            self._wake.notify()

    def check(self) -> None:
        """Raise :class:`BagError` where writing failed, on a full disk for one, or where the bag is gone."""
        if self._error:
            raise BagError(f"recording to {self._writer.path} stopped: {self._error.strerror}") from self._error
        if not self._writer.path.is_dir():  # writing to a file that was removed does not fail
            raise BagError(f"recording to {self._writer.path} stopped: its folder is gone")

    def close(self) -> None:
        """Write what is queued, the index and metadata.yaml.

        Raises:
            BagError: The bag could not be finished; what was flushed stays readable.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.check()
        if self.dropped:
            self._writer.set_custom_data("flashvla_ros.dropped", ", ".join(f"{t}={n}" for t, n in self.dropped.items()))
        try:
            self._writer.close()
        except OSError as error:
            raise BagError(f"cannot finish the bag {self._writer.path}: {error.strerror}") from error

    def _run(self) -> None:
        flush_s = time.monotonic() + FLUSH_S
        closing = False
        while not closing:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing, timeout=flush_s - time.monotonic())
                batch, closing = list(self._queue), self._closing
                self._queue.clear()
            try:
                for topic, time_ns, data in batch:
                    with self._file:
                        self._writer.write(topic, time_ns, data)
                    self.written[topic.topic] += 1
                if time.monotonic() >= flush_s:
                    self._flush()
                    flush_s = time.monotonic() + FLUSH_S
            except OSError as error:
                self._error = error
                return
            with self._wake:
                self._queued_bytes -= sum(len(data) for _, _, data in batch)

    def _flush(self) -> None:
        """Close the chunk under way and hand it to the operating system."""
        with self._file:
            storage: Any = self._writer.storage  # rosbags' McapWriter; its chunks are closed by size alone otherwise
            if storage.chunk.msgs:
                storage.close_chunk()
            storage.bio.flush()
