"""A robot that is not where it was told to be is stopped, said so everywhere once, and stays so until a reset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import ScriptedPolicy
from policy_bench import PolicyBench
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

ERROR = b"\x02"


@pytest.fixture
def bench() -> Iterator[PolicyBench]:
    bench = PolicyBench(
        ScriptedPolicy(actions=[[1.0]], scale=1.0),
        command__type="Float64MultiArray",
        action__names=["elbow"],
        action__kinds=["absolute"],
        control__image_timeout_s=30.0,
        control__max_deviation=[0.2],
        control__deviation_time_s=0.3,
        control__state_timeout_s=30.0,
    )
    bench.start()
    yield bench
    bench.close()


def stopped(bench: PolicyBench) -> Any:
    bench.until(lambda: bench.logged("stopped, deviation"), "the stop")
    return bench.report()


def test_a_robot_that_does_not_follow_is_stopped_until_reset(bench):
    bench.measure(elbow=0.9)
    bench.step()
    bench.spin(0.5)
    assert bench.report().state == "running"  # near enough
    bench.measure(elbow=0.5)
    status = stopped(bench)
    assert (status.state, status.stops) == ("stopped", 1)
    reason = "deviation: elbow is at 0.5 and was commanded to 1 (control.max_deviation is 0.2) for "
    assert status.stop_reason.startswith(reason)
    [entry] = bench.diagnostics[-1].status
    assert (entry.level, entry.message.startswith(f"stopped: {reason}")) == (ERROR, True)
    assert list(bench.commands[-1].data) == [0.5]  # where it is
    commands = len(bench.commands)
    for _ in range(3):  # latched: going on would push again
        bench.show()
        bench.spin(0.05)
    assert len(bench.commands) == commands
    bench.log_line("stopped, deviation")
    bench.measure(elbow=1.0)
    assert bench.call(bench.reset, Trigger.Request()).success
    bench.step()
    bench.spin(0.5)
    assert bench.report().state == "running"


def test_a_robot_that_is_no_longer_reported_is_stopped(bench):
    bench.measure(elbow=1.0)
    assert bench.set("control.state_timeout_s", 0.1).successful
    bench.step()
    assert "elbow is not reported by joint_states or end_effector_pose" in stopped(bench).stop_reason


def test_an_emergency_stop_outranks_a_deviation(bench):
    bench.measure(elbow=0.0)
    bench.step()
    stopped(bench)
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: bench.report().stop_reason.startswith("emergency_stop"), "the emergency stop")


def test_a_dry_run_is_not_followed_and_not_blamed(bench):
    assert bench.set("control.dry_run", True).successful
    bench.measure(elbow=0.0)
    bench.step()
    bench.spin(0.6)
    assert bench.report().state == "running"
