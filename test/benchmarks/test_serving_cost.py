"""The benchmark of serving: what it counts, on a server in this process."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fakes import ScriptedPolicy

pytest.importorskip("websockets", reason="the extra `remote` is not installed")

from benchmarks import serving
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote.server import PolicyServer
from flashvla_ros.remote.service import ServerOptions
from flashvla_ros.vla.loading import LoadedPolicy


def test_every_robot_is_asked_for_and_the_page_says_so() -> None:
    policy = ScriptedPolicy()
    server = PolicyServer(LoadedPolicy(policy), Settings(), ServerOptions(port=0, rate_hz=1e6))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
    try:
        row = serving._measure([f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}"], 3, 0.5)
    finally:
        loop.call_soon_threadsafe(listening.close)
        asyncio.run_coroutine_threadsafe(listening.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert row["answers_hz"] * 0.5 == policy.calls - 9  # three robots warm up with three questions each
    assert 0.0 < row["slowest_share"] <= 1.0
    made = {"device": "cpu", "cores": 2, "load": 0.0, "autogroup": "nice 0", "seconds": 0.5}
    made["batches"] = [{"size": 1, "one_ms": 2.0, "batch_ms": 1.0}]
    assert "| one model | 3 |" in serving.page({"meta": made, "rows": [{"kind": "one model", "robots": 3, **row}]})
