"""Servers that are closed after the test, and the plain reason where the extra is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `remote` is not installed")

from policy_server import ScriptedServer


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*arguments: Any, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
