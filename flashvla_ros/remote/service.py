"""What serving means, whatever carries it: who is let in, and one model that many clients take turns at."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import logging
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import flashvla_ros
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.remote import wire
from flashvla_ros.remote.mapping import STAMP, ObservationMap
from flashvla_ros.vla.loading import LoadedPolicy

_LOG = logging.getLogger(__name__)
PLAIN, GATED = "/", "/gated"
HEALTH, METADATA = "/healthz", "/metadata"


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, whom it lets in, how much of it one client may use, and how often the model is there.

    Attributes:
        host, port: Address; port 0: any that is free.
        api_key: Asked of every client; empty: none.
        certificate: PEM file with the server's certificate and its key; None: no TLS.
        clients: Most at a time, of each replica; one more gets HTTP 503.
        rate_hz: Most answers that a client gets in a second; one who asks faster waits.
        replicas: Of the model, on a Ray cluster; 0: this process serves.
        ray: Address of that cluster, ``auto`` for the one that runs here, ``local`` to start one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = dataclasses.field(default="", repr=False)
    certificate: Path | None = None
    clients: int = 32
    rate_hz: float = 100.0
    replicas: int = 0
    ray: str = "local"

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"{'wss' if self.certificate else 'ws'}://{self.host}:{self.port}"


class Service:
    """One model for many clients. At ``/`` every question runs it; at ``/gated`` each client has a gate of its own.

    A client has one question at a time, and the model's thread takes questions in the order in which they came: with n
    clients each waits for n - 1 others at most. A message has 16 MiB at most, so memory is bounded by the clients.

    Args:
        loaded: The policy.
        settings: Its parameters, and how clients name things (``remote.*``).
        options: Of the server.

    Attributes:
        clients: The connections of those that are served now; whoever carries them adds them.
    """

    def __init__(self, loaded: LoadedPolicy, settings: Settings, options: ServerOptions) -> None:
        self._policy = loaded.policy
        self._settings = {PLAIN: settings.with_values({"gate.mode": "off"}), GATED: settings}
        self._options = options
        self._metadata = _metadata(loaded, settings)
        self._model = ThreadPoolExecutor(1, thread_name_prefix="flashvla-model")
        self.clients: weakref.WeakSet[object] = weakref.WeakSet()

    def page(self, path: str, authorization: str) -> tuple[HTTPStatus, str] | None:
        """Return what plain HTTP gets at a path, an error where it is refused; None: let the websocket in."""
        if path == HEALTH:
            return HTTPStatus.OK, "OK\n"
        given, key = authorization.removeprefix("Api-Key "), self._options.api_key
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            return HTTPStatus.UNAUTHORIZED, "this server asks for its API key\n"
        if path == METADATA:
            return HTTPStatus.OK, json.dumps(self._metadata) + "\n"
        if path not in self._settings:
            return HTTPStatus.NOT_FOUND, f"there are {', '.join(self._settings)}\n"
        if len(self.clients) >= self._options.clients:
            return HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n"
        return None

    async def answers(self, path: str, questions: AsyncIterable[bytes | str]) -> AsyncIterator[bytes | str]:
        """Yield what to send to one client: metadata, then its answers; a text says what went wrong, and is the last.

        As openpi's server does. What `questions` raises goes through.
        """
        settings, loop = self._settings[path], asyncio.get_running_loop()
        stepper = Stepper(self._policy, ActionSpec.of(settings.action))  # the client's own gate memory and steps
        yield wire.pack(self._metadata)
        previous: dict[str, float] = {}
        next_s = 0.0
        async for data in questions:
            started_s = time.monotonic()
            await asyncio.sleep(max(next_s - started_s, 0.0))
            next_s = max(next_s, started_s) + 1.0 / self._options.rate_hz
            if path == PLAIN:
                _make_due(stepper)
            try:
                answer = await loop.run_in_executor(self._model, _answer, stepper, settings, data)
                answer["server_timing"] |= previous
                packed = wire.pack(answer)
            except FlashVLAError as error:
                yield f"{type(error).__name__}: {error}"
                return
            except Exception:  # noqa: BLE001 - whatever a model raises, the other clients are served on
                _LOG.exception("a step failed")
                yield "the server failed; its log says why"
                return
            yield packed
            previous = {"prev_total_ms": (time.monotonic() - started_s) * 1e3}


def _make_due(stepper: Stepper) -> None:
    """Have the next question run the model: the gate, even off, follows a chunk of several rows, never one of one."""
    state = stepper.state
    if last := state.memory.last:
        memory = dataclasses.replace(state.memory, last=dataclasses.replace(last, motion=last.motion[:1]))
        stepper.state = dataclasses.replace(state, memory=memory)


def _answer(stepper: Stepper, settings: Settings, data: bytes | str) -> dict[str, Any]:
    """Run one control step on the observation in a client's message; limits hold here too, where they are set.

    Raises:
        FlashVLAError: The message is none of openpi's protocol, or the policy cannot use it.
    """
    now_s = time.monotonic()
    message = wire.unpack(data if isinstance(data, bytes) else b"")
    names = ObservationMap(settings.remote, settings.camera.names or ("image",))
    result = stepper.step(names.from_wire(message, now_s, now_s), settings)
    return {
        settings.remote.actions: result.command,
        "gate": {"reused": not result.fresh, "reason": str(result.decision.reason)},
        "policy_timing": {"infer_ms": result.inference_s * 1e3},
        "server_timing": {"infer_ms": (time.monotonic() - now_s) * 1e3},
        **({STAMP: message[STAMP]} if STAMP in message else {}),
    }


def _metadata(loaded: LoadedPolicy, settings: Settings) -> dict[str, Any]:
    """Return what a server says of itself at each connection."""
    action = settings.action
    return {
        "flashvla": {
            "version": flashvla_ros.__version__,
            "names": list(action.names),
            "kinds": list(action.kinds),
            "dt_s": action.dt_s,
            "images": list(settings.remote.images),
            "state": list(settings.remote.state),
            "prompt": settings.remote.prompt,
            "returns": STAMP,
            "checkpoint": loaded.checkpoint,
            "platform": dict(loaded.platform),
        }
    }
