"""Our policy for others: openpi's protocol, one model on a thread of its own, many clients who take turns."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import logging
import ssl
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import websockets
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote import wire
from flashvla_ros.remote.served_client import ServedClient, metadata
from flashvla_ros.vla.loading import LoadedPolicy

_LOG = logging.getLogger(__name__)
PLAIN, GATED = "/", "/gated"
_OPEN_S = 5.0  # to finish a handshake


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, whom it lets in, and how much of it one client may use.

    Attributes:
        host, port: Address; port 0: any that is free.
        api_key: Asked of every client; empty: none.
        tls: With the server's certificate; None: no TLS.
        clients: Most at a time; one more gets HTTP 503.
        rate_hz: Most answers that a client gets in a second; one who asks faster waits.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = dataclasses.field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    clients: int = 32
    rate_hz: float = 100.0


class PolicyServer:
    """Serves a policy. At ``/`` every question runs the model; at ``/gated`` each client has a gate of its own.

    A client has one question at a time, and the model's thread takes questions in the order in which they came: with n
    clients each waits for n - 1 others at most. A message has 16 MiB at most, so memory is bounded by the clients.

    Args:
        loaded: The policy.
        settings: Its parameters, and how clients name things (``remote.*``).
        options: Of the server.
    """

    def __init__(self, loaded: LoadedPolicy, settings: Settings, options: ServerOptions) -> None:
        self._policy = loaded.policy
        self._settings = {PLAIN: settings.with_values({"gate.mode": "off"}), GATED: settings}
        self._options = options
        self._metadata = metadata(loaded, settings)
        self._model = ThreadPoolExecutor(1, thread_name_prefix="flashvla-model")
        self._clients: weakref.WeakSet[ServerConnection] = weakref.WeakSet()

    async def start(self) -> Server:
        """Listen; returns the server, which serves until it is closed."""
        options = self._options
        return await serve(
            self._handle,
            options.host,
            options.port,
            ssl=options.tls,
            process_request=self._on_request,
            compression=None,
            max_size=wire.MOST_BYTES,
            max_queue=1,
            open_timeout=_OPEN_S,
        )

    async def run(self, until: asyncio.Event) -> None:
        """Serve until an event is set."""
        async with await self.start() as server:
            host, port = server.sockets[0].getsockname()[:2]
            _LOG.warning("serving on %s://%s:%d", "wss" if self._options.tls else "ws", host, port)
            await until.wait()

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP, and refuse whom it does not let in."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._options.api_key:
            given = request.headers.get("Authorization", "").removeprefix("Api-Key ")
            if not hmac.compare_digest(given.encode(), self._options.api_key.encode()):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "this server asks for its API key\n")
        if request.path == "/metadata":
            return connection.respond(HTTPStatus.OK, json.dumps(self._metadata) + "\n")
        if request.path not in self._settings:
            return connection.respond(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._settings)}\n")
        if len(self._clients) >= self._options.clients:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        self._clients.add(connection)
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request else PLAIN
        client = ServedClient(self._policy, self._settings[path])
        try:
            await connection.send(wire.pack(self._metadata))
            await self._answer_all(connection, client)
        except websockets.ConnectionClosed:
            pass
        except FlashVLAError as error:
            await self._refuse(connection, f"{type(error).__name__}: {error}")
        except Exception:  # noqa: BLE001 - whatever a model raises, the other clients are served on
            _LOG.exception("a step failed")
            await self._refuse(connection, "the server failed; its log says why")
        finally:
            self._clients.discard(connection)

    async def _answer_all(self, connection: ServerConnection, client: ServedClient) -> None:
        loop = asyncio.get_running_loop()
        previous: dict[str, float] = {}
        next_s = 0.0
        async for data in connection:
            started_s = time.monotonic()
            await asyncio.sleep(max(next_s - started_s, 0.0))
            next_s = max(next_s, started_s) + 1.0 / self._options.rate_hz
            answer, model_s = await loop.run_in_executor(self._model, _timed, client, data)
            answer["server_timing"] = {"infer_ms": model_s * 1e3, **previous}
            await connection.send(wire.pack(answer))
            previous = {"prev_total_ms": (time.monotonic() - started_s) * 1e3}

    async def _refuse(self, connection: ServerConnection, line: str) -> None:
        """Say why in text, as openpi's server does, and close."""
        try:
            await connection.send(line)
            await connection.close(websockets.CloseCode.INTERNAL_ERROR, "the reason is in the frame before")
        except websockets.ConnectionClosed:
            pass


def _timed(client: ServedClient, data: bytes | str) -> tuple[dict[str, Any], float]:
    started_s = time.monotonic()
    return client.answer(data), time.monotonic() - started_s
