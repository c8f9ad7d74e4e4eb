"""A clock that jumps, as a bag that loops or a simulation that begins again makes it.

The gate starts anew, and time-outs go on.

Stamps are on /clock; time-outs, the rate of control, the age of joint states and the status are on the steady clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from fakes import HeldPolicy, ScriptedPolicy
from policy_bench import PolicyBench
from rosgraph_msgs.msg import Clock

from flashvla_ros.msg import GateStatus

INFER, REUSE = GateStatus.INFER, GateStatus.REUSE
PARAMETERS = {
    "use_sim_time": True,
    "control__image_timeout_s": 30.0,
    "control__state_timeout_s": 30.0,
    "control__rate_hz": 50.0,
    "gate__max_reuse": 100,
    "gate__max_age_s": 60.0,
}


class Simulation:
    """A bench whose time the test sets."""

    def __init__(self, policy: ScriptedPolicy | None = None, **parameters: Any) -> None:
        self.bench = PolicyBench(policy, **{**PARAMETERS, **parameters})
        self._clock = self.bench.robot.create_publisher(Clock, "/clock", 10)
        self.now_s = 0.0

    def start(self) -> PolicyBench:
        self.bench.until(self._clock.get_subscription_count, "the clock's reader")
        self.at(5000.0)
        return self.bench.start()

    def at(self, now_s: float) -> None:
        """Set the time, and wait until the node has it."""
        self.now_s = now_s
        self._clock.publish(Clock(clock=Time(sec=int(now_s), nanosec=round(now_s % 1.0 * 10) * 10**8)))
        wanted = round(now_s * 10) * 10**8
        self.bench.until(lambda: self.bench.node.get_clock().now().nanoseconds == wanted, "the time")

    def step(self) -> GateStatus:
        """Let a tenth of a second pass and show a picture."""
        self.at(self.now_s + 0.1)
        return self.bench.step()


@pytest.fixture
def make() -> Iterator[Any]:
    opened: list[Simulation] = []

    def make(*arguments: Any, **parameters: Any) -> Simulation:
        opened.append(Simulation(*arguments, **parameters))
        return opened[-1]

    yield make
    for simulation in opened:
        simulation.bench.close()


@pytest.mark.parametrize(("jump_s", "reason"), [(-995.0, "clock_jump"), (-1.2, "clock_jump"), (3600.0, "stale_gap")])
def test_after_a_jump_the_model_runs_twice_before_anything_is_reused(make, jump_s, reason):
    simulation = make()
    bench = simulation.start()
    assert [simulation.step().decision for _ in range(4)] == [INFER, INFER, REUSE, REUSE]
    for _ in range(2):  # a bag that loops does it again and again
        calls = bench.policy.calls
        simulation.at(simulation.now_s + jump_s)
        gates = [simulation.step() for _ in range(4)]
        assert [gate.decision for gate in gates] == [INFER, INFER, REUSE, REUSE]
        assert [gate.reason for gate in gates] == [reason, "too_few_fresh", "reuse", "reuse"]
        assert [gate.age_s for gate in gates] == pytest.approx([0.0, 0.0, 0.1, 0.2])
        assert bench.policy.calls == calls + 2
        assert bench.commands[-1].header.stamp == gates[-1].header.stamp == bench.node.get_clock().now().to_msg()
    status = bench.report()
    assert (status.state, status.stops) == ("running", 0)  # an hour of /clock is no silence of a camera
    assert status.header.stamp == bench.node.get_clock().now().to_msg()
    assert 0.0 < status.latency_p50_s < 30.0
    assert gates[-1].epoch == 0
    assert not bench.logged("Traceback")


@pytest.mark.parametrize("jump_s", [-900.0, 900.0])
def test_a_camera_that_falls_silent_at_a_jump_is_noticed_in_wall_time(make, jump_s):
    simulation = make()
    bench = simulation.start()
    simulation.step()
    simulation.at(simulation.now_s + jump_s)
    assert bench.report().state == "running"
    assert bench.set("control.image_timeout_s", 0.2).successful
    line = bench.log_line("stopped, image_timeout")  # though the clock stands still
    assert "no image of camera 'image' for " in line
    assert bench.commands[-1].twist.linear.x == 0.0
    assert bench.commands[-1].header.stamp == bench.node.get_clock().now().to_msg()
    assert bench.set("control.image_timeout_s", 30.0).successful
    gate = simulation.step()
    assert (gate.decision, gate.reason) == (INFER, "image_timeout")


@pytest.mark.parametrize("jump_s", [-900.0, 900.0])
def test_a_model_that_hangs_across_a_jump_is_stopped_in_wall_time(make, jump_s):
    policy = HeldPolicy()
    simulation = make(policy, control__inference_timeout_s=30.0)
    bench = simulation.start()
    simulation.step()
    simulation.at(simulation.now_s + 0.1)
    bench.show()
    bench.until(policy.entered.is_set, "the model")
    simulation.at(simulation.now_s + jump_s)
    assert bench.report().state == "running"
    assert bench.set("control.inference_timeout_s", 0.2).successful
    bench.log_line("stopped, inference_timeout")
    policy.go_on.set()
    assert bench.set("control.inference_timeout_s", 30.0).successful
    assert simulation.step().reason == "inference_timeout"
    assert len(bench.gates) == 2  # what it said of the picture before the jump was dropped


def test_an_answer_under_way_at_a_jump_is_of_its_own_time_and_the_next_one_starts_anew(make):
    policy = HeldPolicy()
    simulation = make(policy, control__inference_timeout_s=30.0)
    bench = simulation.start()
    simulation.step()
    simulation.at(simulation.now_s + 0.1)
    shown = bench.show()
    bench.until(policy.entered.is_set, "the model")
    simulation.at(5.0)
    policy.go_on.set()
    bench.until(lambda: len(bench.gates) == 2, "the step that was under way")
    assert bench.commands[-1].header.stamp == shown.stamp
    gate = simulation.step()
    assert (gate.decision, gate.reason, gate.age_s) == (INFER, "clock_jump", 0.0)
    assert bench.report().state == "running"


def test_what_joint_states_said_holds_across_a_jump(make):
    simulation = make(
        ScriptedPolicy(actions=[[0.5]], scale=1.0),
        command__type="Float64MultiArray",
        action__names=["elbow"],
        action__kinds=["absolute"],
    )
    bench = simulation.start()
    bench.measure(elbow=0.25)
    simulation.step()
    simulation.at(5.0)
    bench.node.trigger_deactivate()
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    assert list(bench.commands[1].data) == [0.25]
