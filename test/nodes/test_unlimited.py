"""A node that moves a robot without limits says so."""

from __future__ import annotations

from typing import Any

import pytest
from policy_bench import PolicyBench

BOUNDED = {"limits__lower": [-1.0, -1.0, -1.0, -1.0], "limits__upper": [1.0, 1.0, 1.0, 1.0]}


@pytest.fixture
def make():
    benches: list[PolicyBench] = []

    def make(**parameters: Any) -> PolicyBench:
        benches.append(PolicyBench(**parameters).start())
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def test_it_is_said_once_however_often_it_is_activated(make) -> None:
    bench = make()
    bench.step()
    assert "nothing bounds x, y, z, whatever the policy says" in bench.log_line("NO LIMITS")
    bench.node.trigger_deactivate()
    bench.node.trigger_activate()
    bench.step()
    bench.log_line("NO LIMITS")


def test_a_robot_with_limits_is_not_spoken_of_until_they_are_taken_away(make) -> None:
    bench = make(**BOUNDED)
    bench.step()
    assert not bench.logged("NO LIMITS")
    assert bench.set("limits.upper", []).successful
    bench.log_line("NO LIMITS")
