"""Our policy for others, in this process: openpi's protocol over websockets."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from pathlib import Path

import websockets
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote import wire
from flashvla_ros.remote.service import PLAIN, ServerOptions, Service
from flashvla_ros.vla.loading import LoadedPolicy

_LOG = logging.getLogger(__name__)
_OPEN_S = 5.0  # to finish a handshake


class PolicyServer:
    """Serves a policy.

    Args:
        loaded: The policy.
        settings: Its parameters, and how clients name things (``remote.*``).
        options: Of the server.
    """

    def __init__(self, loaded: LoadedPolicy, settings: Settings, options: ServerOptions) -> None:
        self._service = Service(loaded, settings, options)
        self._options = options

    async def start(self) -> Server:
        """Listen; returns the server, which serves until it is closed."""
        options = self._options
        return await serve(
            self._handle,
            options.host,
            options.port,
            ssl=tls_of(options.certificate),
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
            _LOG.warning("serving on %s", dataclasses.replace(self._options, host=host, port=port).address)
            await until.wait()

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP, and refuse whom it does not let in."""
        page = self._service.page(request.path, request.headers.get("Authorization", ""))
        if page is not None:
            return connection.respond(*page)
        self._service.clients.add(connection)
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        path = connection.request.path if connection.request else PLAIN
        try:
            async for frame in self._service.answers(path, connection):
                await connection.send(frame)
            await connection.close(websockets.CloseCode.INTERNAL_ERROR, "the reason is in the frame before")
        except websockets.ConnectionClosed:
            pass
        finally:
            self._service.clients.discard(connection)


def tls_of(certificate: Path | None) -> ssl.SSLContext | None:
    """Return what a server needs for TLS, None where it is not asked for.

    Raises:
        SettingsError: The file holds no certificate with its key.
    """
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"--certificate {certificate} holds no certificate with its key: {error}") from error
    return context
