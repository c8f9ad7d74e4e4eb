"""The node over DDS with a policy that runs elsewhere: commands, its share of the time, and a server that dies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from policy_bench import PolicyBench

from flashvla_ros.remote.loading import FROM_SETTINGS

pytest.importorskip("websockets", reason="the extra `remote` is not installed")

from policy_server import ScriptedServer, chunk, cut


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


@pytest.mark.parametrize("ahead", [0, 6])
def test_the_robot_moves_while_the_server_thinks_only_with_prefetch(
    ahead: int, serve: Callable[..., ScriptedServer], bench: Callable[..., PolicyBench]
) -> None:
    """A server that takes until another command has come, or loses its patience."""
    benches: list[PolicyBench] = []
    meanwhile: list[int] = []

    def slowly(_connection: object, _message: object, number: int) -> dict:
        before = len(benches[0].commands) if benches else 0
        end_s = time.monotonic() + 0.5
        while benches and number > 2 and len(benches[0].commands) == before and time.monotonic() < end_s:
            time.sleep(0.005)
        if number > 2:
            meanwhile.append(len(benches[0].commands) - before)
        return {"actions": chunk(0.004, steps=10)}

    one = bench(serve(slowly, good=0), control__prefetch=ahead, gate__mode="off", gate__stale_gap_s=60.0).start()
    benches.append(one)
    for index in range(24):
        one.frame(index)
    assert len(meanwhile) >= 2
    # With prefetch a request may still come late on a busy machine: the rows are gone by then, and the robot waits.
    assert (max(meanwhile) > 0) is (ahead > 0)
    taken = [gate for gate in one.gates if gate.decision == gate.INFER and gate.age_s > 0.0]
    assert bool(taken) is (ahead > 0)


def test_an_answer_too_old_for_its_image_stops_the_robot(
    serve: Callable[..., ScriptedServer], bench: Callable[..., PolicyBench]
) -> None:
    def slowly(_connection: object, _message: object, number: int) -> dict:
        time.sleep(1.5 if number > 2 else 0.0)
        return {"actions": chunk(0.004, steps=30)}

    ages = {"control__max_image_age_s": 1.0, "control__inference_timeout_s": 0.9}
    one = bench(serve(slowly, good=0), control__prefetch=28, gate__mode="off", gate__stale_gap_s=60.0, **ages).start()
    one.until(lambda: one.show() and one.logged("stopped, inference_timeout"), "the stop")
    assert one.commands[-1].twist.linear.x == 0.0
