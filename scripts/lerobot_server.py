#!/usr/bin/env python3
# /// script
# requires-python = ">=3.12"
# dependencies = ["lerobot[smolvla]==0.6.1", "msgpack>=1", "websockets>=15"]
# ///
"""Serves a LeRobot policy folder by openpi's protocol, in an environment of its own: LeRobot's pins are not ours.

    python3.12 -m venv lerobot
    lerobot/bin/pip install "lerobot[smolvla]==0.6.1" "msgpack>=1" "websockets>=15"
    lerobot/bin/python scripts/lerobot_server.py FOLDER --port 8000

A question has the policy's own input names, nested or not (``observation.images.front``), and ``prompt``. The answer
has ``actions``, float32 [T, D] in the robot's units: the chunk, or one row where the policy looks at several frames.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hmac
import ipaddress
import os
import re
import ssl
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import websockets
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

MOST_BYTES = 16 * 2**20
DTYPE = re.compile("[<>|=]?[biuf][0-9]{1,2}")  # of arrays that are read; NumPy parses a long structure for minutes


def pack(message: dict[str, Any]) -> bytes:
    """Return the bytes of a message, as openpi's msgpack_numpy makes them."""

    def to_map(value: Any) -> dict[Any, Any]:
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        raise TypeError(f"a value of type {type(value).__name__}")

    return msgpack.packb(message, default=to_map)


def unpack(data: bytes) -> Any:
    """Return the message in `data`; raises ValueError where it is none."""

    def from_map(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" not in value:
            return value
        if not DTYPE.fullmatch(value[b"dtype"]):
            raise ValueError(f"an array of dtype {value[b'dtype']:.100}")
        return np.frombuffer(value[b"data"], value[b"dtype"]).reshape(value[b"shape"]).copy()

    return msgpack.unpackb(data, object_hook=from_map)


def flat(message: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted names, whether they were nested, dotted or had slashes."""
    found: dict[str, Any] = {}
    for key, value in message.items():
        name = f"{prefix}{str(key).replace('/', '.')}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


class Served:
    """A policy with its processors; one thread uses it at a time."""

    def __init__(self, folder: str, device: str) -> None:
        self.config = config = PreTrainedConfig.from_pretrained(folder)
        config.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        self.before, self.after = make_pre_post_processors(
            config, folder, preprocessor_overrides={"device_processor": {"device": config.device}}
        )
        # These keep what they saw: one client at a time, and one row an answer.
        self.remembers = config.n_obs_steps > 1 or getattr(config, "temporal_ensemble_coeff", None) is not None
        self.told: set[tuple[str, tuple[int, ...]]] = set()
        inputs = {name: list(feature.shape) for name, feature in config.input_features.items()}
        outputs = {name: list(feature.shape) for name, feature in config.output_features.items()}
        self.metadata = {"lerobot": {"type": config.type, "inputs": inputs, "outputs": outputs}}

    def reset(self) -> None:
        """Forget the client before."""
        self.policy.reset()

    @torch.inference_mode()
    def answer(self, data: bytes) -> dict[str, Any]:
        """Run the policy on the observation in a message; raises ValueError where it lacks something."""
        started_s = time.monotonic()
        message = flat(unpack(data))
        inputs = {name: self._input(message, name) for name in self.config.input_features}
        device = torch.device(self.config.device)
        batch = self.before(prepare_observation_for_inference(inputs, device, str(message.get("prompt", ""))))
        if self.remembers:
            rows = [self.after(self.policy.select_action(batch))]
        else:
            chunk = self.policy.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            rows = [self.after(chunk[:, row]) for row in range(chunk.shape[1])]
        actions = torch.cat(rows).float().cpu().numpy()
        return {"actions": actions, "server_timing": {"infer_ms": 1e3 * (time.monotonic() - started_s)}}

    def _input(self, message: dict[str, Any], name: str) -> np.ndarray:
        feature, value = self.config.input_features[name], message.get(name)
        if not isinstance(value, np.ndarray):
            raise ValueError(f"the policy reads {name}, and the message has {', '.join(sorted(message))}")
        shape = tuple(feature.shape)
        if feature.type is not FeatureType.VISUAL:
            if value.shape != shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, and the policy reads {list(shape)}")
            return value.astype(np.float32)
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[0] == 3:
            value = np.ascontiguousarray(value.transpose(1, 2, 0))
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, and the policy reads uint8 [H, W, 3]")
        if value.shape[:2] != shape[1:] and (name, value.shape) not in self.told:
            self.told.add((name, value.shape))
            print(f"{name} has {value.shape[:2]} pixels, and was trained with {shape[1:]}", flush=True)
        return value


def trust(certificate: Path | None) -> ssl.SSLContext | None:
    """Return TLS with this certificate, None without one."""
    if certificate is None:
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    return tls


async def run(served: Served, args: argparse.Namespace, key: str) -> None:
    """Serve until the process ends."""
    model = asyncio.Lock()
    clients: set[ServerConnection] = set()

    def on_request(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "").removeprefix("Api-Key ")
        if key and not hmac.compare_digest(given.encode(), key.encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this server asks for its API key\n")
        if served.remembers and clients:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "this policy serves one client at a time\n")
        return None

    async def handle(connection: ServerConnection) -> None:
        clients.add(connection)
        try:
            if served.remembers:
                served.reset()
            await connection.send(pack(served.metadata))
            async for data in connection:
                async with model:
                    answer = await asyncio.to_thread(served.answer, data)
                await connection.send(pack(answer))
        except websockets.ConnectionClosed:
            pass
        except Exception as error:  # noqa: BLE001 - whatever a policy raises, the other clients are served on
            with contextlib.suppress(websockets.ConnectionClosed):
                await connection.send(f"{type(error).__name__}: {error}")
                await connection.close(websockets.CloseCode.INTERNAL_ERROR, "the reason is in the frame before")
        finally:
            clients.discard(connection)

    tls = trust(args.certificate)
    listen = functools.partial(serve, process_request=on_request, compression=None, max_size=MOST_BYTES, max_queue=1)
    async with listen(handle, args.host, args.port, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"serving {served.config.type} on {'wss' if tls else 'ws'}://{args.host}:{port}", flush=True)
        await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="policy, as LeRobot's save_pretrained writes it")
    parser.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    parser.add_argument("--device", default="", help="cuda, cpu, …")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="of the server, with its key")
    args = parser.parse_args()
    key = os.environ.get("FLASHVLA_API_KEY", "").strip()
    local = args.host == "localhost" or ipaddress.ip_address(args.host).is_loopback
    if not local and not (args.certificate and key):
        parser.error(f"--host {args.host} is open to other machines: give --certificate, and FLASHVLA_API_KEY")
    if not (args.folder / "config.json").is_file():
        parser.error(f"{args.folder} is no policy of LeRobot's: it has no config.json")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(Served(str(args.folder), args.device), args, key))


if __name__ == "__main__":
    main()
