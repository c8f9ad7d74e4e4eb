"""A real websocket server on this machine that speaks openpi's protocol, by a script: well at first, then as asked."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.sync.server import ServerConnection, serve

from flashvla_ros.remote import wire

Answer = Callable[[ServerConnection, dict, int], Any]


def chunk(value: float = 0.004, steps: int = 1) -> np.ndarray:
    """[steps, 4] for the action x, y, z, gripper."""
    return np.tile(np.array([value, 0.0, 0.0, 1.0]), (steps, 1))


def well(_connection: ServerConnection, _message: dict, number: int) -> dict:
    return {"actions": chunk(0.004 + 1e-5 * number), "server_timing": {"infer_ms": 0.01}}  # less than any round trip


def cut(connection: ServerConnection) -> None:
    """End a connection as a killed process does: by a reset."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.close()


class ScriptedServer:
    """Answers the first `good` questions well and the others by `then`.

    Args:
        then: Gets the connection, the message and its number; what it returns is sent, None sends nothing.
        good: Questions answered well, with the one that the policy asks at first.
        metadata: Said at each connection.
        options: Of :func:`websockets.sync.server.serve`.

    Attributes:
        messages: Every question.
        connections: How many there were.
    """

    def __init__(
        self, then: Answer = well, good: int = 10**9, metadata: Any = None, port: int = 0, **options: Any
    ) -> None:
        self.then, self.good, self.metadata = then, good, {} if metadata is None else metadata
        self.messages: list[dict] = []
        self.connections = 0
        self._server = serve(self._handle, "127.0.0.1", port, compression=None, max_size=None, **options)
        self.port = self._server.socket.getsockname()[1]
        self.uri = f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _handle(self, connection: ServerConnection) -> None:
        self.connections += 1
        connection.send(wire.pack(self.metadata))
        for data in connection:
            self.messages.append(wire.unpack(data))
            number = len(self.messages)
            answer = (well if number <= self.good else self.then)(connection, self.messages[-1], number)
            if answer is not None:
                connection.send(answer if isinstance(answer, bytes | str) else wire.pack(answer))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
