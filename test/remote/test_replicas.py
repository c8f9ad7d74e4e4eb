"""The service over Ray: the same application under a local cluster, and its ASGI form without one."""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.request
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedPolicy
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flashvla_ros.__main__ import main
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote import wire
from flashvla_ros.remote.replicas import Application, cluster
from flashvla_ros.remote.service import ServerOptions, Service
from flashvla_ros.vla.loading import LoadedPolicy

QUESTION = {"observation/image": np.full((64, 64, 3), 90, np.uint8), "prompt": "open the drawer"}


def serve(scope: dict, received: list[dict], **options: Any) -> list[dict]:
    """What the application sends, once it has received what a server would hand it."""
    sent: list[dict] = []

    async def receive() -> dict:
        return received.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    application = Application(Service(LoadedPolicy(ScriptedPolicy()), Settings(), ServerOptions(**options)))
    asyncio.run(application({"headers": [], **scope}, receive, send))
    return sent


def talk(*data: bytes, **options: Any) -> list[dict]:
    received = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "bytes": one} for one in data)]
    scope = {"type": "websocket", "path": "/", "extensions": {"websocket.http.response": {}}}
    return serve(scope, [*received, {"type": "websocket.disconnect"}], **options)


def test_a_client_gets_metadata_and_an_answer_to_each_question() -> None:
    accepted, metadata, *answers = talk(wire.pack(QUESTION), wire.pack(QUESTION))
    assert accepted == {"type": "websocket.accept"}
    assert "flashvla" in wire.unpack(metadata["bytes"])
    assert [wire.unpack(answer["bytes"])["actions"].shape for answer in answers] == [(1, 4)] * 2


def test_what_cannot_be_read_is_told_in_text_and_ends_the_connection() -> None:
    *_, told, closed = talk(b"\xc1")
    assert "no message" in told["text"]
    assert closed["type"] == "websocket.close"


def test_without_its_key_a_client_is_refused() -> None:
    assert talk(api_key="secret")[0]["status"] == 401
    [_, body] = serve({"type": "http", "path": "/healthz"}, [], api_key="secret")
    assert body["body"] == b"OK\n"


def test_without_ray_serve_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(["serve", "--replicas", "2"]) == 2
    assert "pip install 'ray[serve]" in capsys.readouterr().err


@pytest.mark.timeout(400)  # a cluster is a handful of processes
def test_two_replicas_on_a_local_cluster_serve_clients_as_a_process_does() -> None:
    pytest.importorskip(
        "ray.serve", reason="Ray Serve is not installed: pip install 'ray[serve]'", exc_type=ImportError
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ServerOptions(port=port, api_key="secret", replicas=2)
    answers = set()
    with cluster(Settings(), options):
        key = {"Authorization": "Api-Key secret"}
        for _ in range(3):
            with connect(
                f"ws://127.0.0.1:{port}/", additional_headers=key, compression=None, open_timeout=60
            ) as connection:
                assert "flashvla" in wire.unpack(connection.recv(120))
                connection.send(wire.pack(QUESTION))
                answers.add(wire.unpack(connection.recv(120))["actions"].tobytes())
        with pytest.raises(InvalidStatus) as caught, connect(f"ws://127.0.0.1:{port}/", open_timeout=60):
            pass
        assert caught.value.response.status_code in (401, 403)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as health:
            assert health.read() == b"OK\n"
    assert len(answers) == 1
