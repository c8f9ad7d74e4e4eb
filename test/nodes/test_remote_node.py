"""The node over DDS with a policy that runs elsewhere: commands, its share of the time, and a server that dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from policy_bench import PolicyBench

from flashvla_ros.remote.loading import FROM_SETTINGS

pytest.importorskip("websockets", reason="the extra `remote` is not installed")

from policy_server import ScriptedServer, chunk, cut


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*arguments: Any, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., PolicyBench]]:
    benches: list[PolicyBench] = []

    def start(server: ScriptedServer, **values: Any) -> PolicyBench:
        benches.append(PolicyBench(factory=FROM_SETTINGS, model__remote=server.uri, **values))
        return benches[-1]

    yield start
    for one in benches:
        one.close()


def test_a_remote_policy_moves_the_robot_is_gated_and_stops_it_when_lost(
    serve: Callable[..., ScriptedServer], bench: Callable[..., PolicyBench]
) -> None:
    server = serve(then=lambda connection, *_: cut(connection), good=4)
    one = bench(server, gate__tokenless_angle_deg=5.0, gate__max_reuse=1, gate__max_age_s=60.0, gate__stale_gap_s=60.0)
    one.start()
    reasons = [one.step().reason for _ in range(3)]
    assert reasons == ["start", "too_few_fresh", "reuse"]
    assert [one.step().reason for _ in range(2)] == ["max_reuse", "reuse"]
    assert len(server.messages) == 4  # with the one at activation
    assert server.messages[-1]["prompt"] == "open the drawer"
    one.report()
    figures = {value.key: float(value.value) for value in one.diagnostics[-1].status[0].values if "_p50" in value.key}
    assert 0.0 < figures["network_p50_s"] < figures["inference_p50_s"]
    one.until(lambda: len(one.commands) == 5, "five commands")
    one.show()
    one.log_line("stopped, fault: RemoteError: ws://127.0.0.1")
    one.until(lambda: len(one.commands) == 6, "the stop")
    assert one.commands[-1].twist.linear.x == 0.0


def test_a_server_of_another_action_is_refused_at_activation(
    serve: Callable[..., ScriptedServer], bench: Callable[..., PolicyBench]
) -> None:
    one = bench(serve(lambda *_: {"actions": chunk()[:, :3]}, good=0))
    assert not one.activate()
    assert "action.names declares 4 dimensions" in one.node.transition_error
