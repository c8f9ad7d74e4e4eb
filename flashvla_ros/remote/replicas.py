"""Our policy for others, over a Ray cluster: the same service in several replicas, one GPU each where there are any.

A client stays with its replica for as long as it is connected, and so does its gate. Ray's proxy is what listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from flashvla_ros.core.errors import RemoteError
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote.service import ServerOptions, Service
from flashvla_ros.vla.loading import load_policy

_LOG = logging.getLogger(__name__)
_NAME = "flashvla"
_SPARE = 4  # requests of health and metadata while every place of a client is taken
_INTERNAL_ERROR, _POLICY = 1011, 1008

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application:
    """A service as an ASGI application (asgi.readthedocs.io), which Ray's proxies speak.

    Args:
        service: What is served.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request or one client."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        page = self._service.page(scope["path"], headers.get("authorization", ""))
        if scope["type"] == "http":
            await self._respond("http", *(page or (400, "this is a websocket\n")), send)
        elif page is not None:
            await receive()
            if "websocket.http.response" in (scope.get("extensions") or {}):
                await self._respond("websocket.http", *page, send)
            else:
                await send({"type": "websocket.close", "code": _POLICY, "reason": page[1]})
        else:
            await self._talk(scope["path"], receive, send)

    async def _respond(self, kind: str, status: int, text: str, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": f"{kind}.response.start", "status": int(status), "headers": headers})
        await send({"type": f"{kind}.response.body", "body": text.encode()})

    async def _talk(self, path: str, receive: Receive, send: Send) -> None:
        place = asyncio.current_task()
        self._service.clients.add(place)
        try:
            await receive()
            await send({"type": "websocket.accept"})
            async for frame in self._service.answers(path, _questions(receive)):
                await send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
                if isinstance(frame, str):
                    await send({"type": "websocket.close", "code": _INTERNAL_ERROR, "reason": "see the frame before"})
        except OSError:  # the client has gone
            pass
        finally:
            self._service.clients.discard(place)


async def _questions(receive: Receive) -> AsyncIterator[bytes | str]:
    while (message := await receive())["type"] == "websocket.receive":
        yield message.get("bytes") or message.get("text") or b""


@contextlib.contextmanager
def cluster(settings: Settings, options: ServerOptions) -> Iterator[None]:
    """Serve from replicas until the block is left.

    Raises:
        RemoteError: The cluster cannot be had, or a replica does not start.
    """
    import ray
    from ray import serve

    def application() -> Application:
        return Application(Service(load_policy(settings), settings, options))

    pem, local = str(options.certificate or "") or None, options.ray == "local"
    try:
        ray.init(options.ray, log_to_driver=False, **({"include_dashboard": False} if local else {}))
        serve.start(http_options={"host": options.host, "port": options.port, "ssl_certfile": pem, "ssl_keyfile": pem})
        replica = serve.deployment(serve.ingress(application)()).options(
            name=_NAME,
            num_replicas=options.replicas,
            max_ongoing_requests=options.clients + _SPARE,
            ray_actor_options={"num_gpus": min(1.0, ray.cluster_resources().get("GPU", 0.0))},
        )
        serve.run(replica.bind(), name=_NAME)
    except Exception as error:  # among them plain Exception, where the cluster starts too slowly
        ray.shutdown()
        raise RemoteError(f"the Ray cluster {options.ray} does not serve: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        serve.delete(_NAME)
        ray.shutdown()


async def run(settings: Settings, options: ServerOptions, until: asyncio.Event) -> None:
    """Serve until an event is set; raises as :func:`cluster` does."""
    with cluster(settings, options):
        _LOG.warning("%d replicas serve on %s", options.replicas, options.address)
        await until.wait()
