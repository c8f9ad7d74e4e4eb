"""One connection to a policy server: every question has its deadline, and a connection that failed once is not reused.

A thread of its own runs the connection, so that it answers pings while the robot waits; whoever asks blocks until the
answer or the deadline. The protocol has no number that ties an answer to its question. So there is one question at a
time, an answer that nobody waits for ends the connection, and so does a deadline: a late answer finds it closed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import websockets
from websockets.asyncio.client import ClientConnection, connect

from flashvla_ros.core.errors import RemoteError
from flashvla_ros.remote import wire
from flashvla_ros.remote.endpoint import Endpoint

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CLOSE_S = 0.2  # for the server to say goodbye
_Read = TypeVar("_Read")


class PolicyClient:
    """Asks a server, from one thread at a time.

    Args:
        endpoint: Where it is.

    Attributes:
        metadata: What the server said of itself at the first connection; it must say the same at every later one.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.metadata: dict[Any, Any] | None = None
        self._endpoint = endpoint
        self._connection: ClientConnection | None = None
        self._answer: asyncio.Future[str | bytes] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._unasked = False  # the last connection brought an answer too many, so the one before may be another's
        self._failures = 0
        self._again_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flashvla-remote", daemon=True)
        self._thread.start()

    def ask(self, message: dict[str, Any], deadline_s: float, read: Callable[[Any], _Read]) -> _Read:
        """Send a message and return what `read` makes of the answer, which is there within `deadline_s` from now.

        Raises:
            RemoteError: There is no connection, no answer in time, or none that can be read; or `read` raised it.
        """
        data = wire.pack(message)
        answer = asyncio.run_coroutine_threadsafe(self._within(data, deadline_s), self._loop).result()
        try:
            if isinstance(answer, str):  # openpi's server sends a traceback as text
                raise RemoteError(f"{self._endpoint.uri} failed: {(answer.strip().splitlines() or [''])[-1]:.300}")
            found = read(wire.unpack(answer))
        except RemoteError:
            asyncio.run_coroutine_threadsafe(self._failed(), self._loop).result()
            raise
        self._failures = 0
        return found

    def connect(self, deadline_s: float) -> dict[Any, Any]:
        """Connect if need be and return the server's metadata; raises as :meth:`ask` does."""
        asyncio.run_coroutine_threadsafe(self._within(None, deadline_s), self._loop).result()
        return self.metadata or {}

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(_CLOSE_S * 5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S * 5)
        if not self._thread.is_alive():
            self._loop.close()

    async def _within(self, data: bytes | None, deadline_s: float) -> str | bytes:
        """Connect and ask; whatever goes wrong, the connection is gone before the error is out."""
        uri = self._endpoint.uri
        try:
            async with asyncio.timeout(deadline_s):
                connection = await self._connected()
                if data is None:
                    return b""
                self._answer = self._loop.create_future()
                await connection.send(data)
                answer = await self._answer
        except _WaitingError as error:
            raise RemoteError(f"no connection to {uri}: {error}") from error
        except TimeoutError as error:
            await self._failed()
            raise RemoteError(f"no answer from {uri} within {deadline_s:g} s") from error
        except (OSError, EOFError, ValueError, websockets.WebSocketException) as error:
            await self._failed()
            raise RemoteError(f"{uri}: {_words(error)}") from error
        except RemoteError:
            await self._failed()
            raise
        finally:
            self._answer = None
        return answer

    async def _connected(self) -> ClientConnection:
        if self._connection is not None and self._connection.state is websockets.State.OPEN:
            return self._connection
        await self._drop()
        if self._unasked:
            self._unasked = False
            raise RemoteError(f"{self._endpoint.uri} sent an answer that nobody had asked for")
        wait_s = self._again_s - time.monotonic()
        if wait_s > 0.0:
            raise _WaitingError(f"it failed {self._failures} times, and is tried again in {wait_s:.2g} s")
        key, tls = self._endpoint.api_key, self._endpoint.tls
        self._connection = connection = await _Connect(
            self._endpoint.uri,
            compression=None,  # as openpi's client; pictures and weights of chance do not shrink
            max_size=wire.MOST_BYTES,
            additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
            ping_timeout=None,  # openpi's server answers none while its model runs; every question has its deadline
            close_timeout=_CLOSE_S,
            open_timeout=None,  # the caller's deadline holds
            proxy=None,  # an address of the environment's must not decide where pictures go
            **({"ssl": tls} if tls else {}),
        )
        metadata = await connection.recv()
        metadata = wire.unpack(metadata) if isinstance(metadata, bytes) else metadata
        if not isinstance(metadata, dict):
            raise RemoteError(f"{self._endpoint.uri} does not begin with its metadata, as openpi's protocol asks")
        if self.metadata is not None and wire.pack(metadata) != wire.pack(self.metadata):
            raise RemoteError(f"{self._endpoint.uri} serves another policy than before: deactivate and activate")
        self.metadata = metadata
        self._reader = asyncio.create_task(self._read(connection))
        return connection

    async def _read(self, connection: ClientConnection) -> None:
        """Hand every answer to whoever waits for it; one that nobody waits for belongs to another question."""
        error: Exception = ConnectionError("it closed the connection")
        try:
            async for message in connection:
                if self._answer is None or self._answer.done():
                    self._unasked = True
                    connection.transport.abort()
                    break
                self._answer.set_result(message)
        except websockets.ConnectionClosed as closed:
            error = closed
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def _failed(self) -> None:
        self._failures += 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
        self._again_s = time.monotonic() + pause_s
        await self._drop()

    async def _drop(self) -> None:
        reader, connection = self._reader, self._connection
        self._reader = self._connection = None
        if reader is not None:
            reader.cancel()
        if connection is not None:
            connection.transport.abort()


class _Connect(connect):
    """Follows no redirect: the rules for addresses were held against the first one alone."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class _WaitingError(Exception):
    """The back-off has not passed."""


def _words(error: Exception) -> str:
    if isinstance(error, websockets.InvalidStatus):
        status = error.response.status_code
        if 300 <= status < 400:
            place = " ".join(error.response.headers.get_all("Location"))
            return f"it points to {place or 'nowhere':.200}, no redirect is followed: name the server in model.remote"
        refused = "it refuses the API key" if status in (401, 403) else "it does not speak openpi's protocol"
        return f"{refused} (HTTP status {status})"
    if isinstance(error, websockets.InvalidMessage | EOFError):
        return "it does not speak openpi's protocol (no websocket answers there)"
    return " ".join(str(error).split()) or type(error).__name__
