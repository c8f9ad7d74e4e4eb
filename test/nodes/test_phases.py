"""Bringing a robot up: a dry run that sends nothing, a scale that is seen and replayed, latency held to a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from policy_bench import PolicyBench
from std_msgs.msg import Bool

from flashvla_ros.msg import GateStatus

MakeBench = Callable[..., PolicyBench]
OK, WARN = b"\x00", b"\x01"


@pytest.fixture
def make() -> Iterator[MakeBench]:
    benches: list[PolicyBench] = []

    def make(*arguments: Any, **parameters: Any) -> PolicyBench:
        benches.append(PolicyBench(*arguments, **{"control__image_timeout_s": 10.0, **parameters}))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def message(bench: PolicyBench) -> tuple[bytes, str]:
    """Level and line of /diagnostics at this moment."""
    bench.report()
    [entry] = bench.diagnostics[-1].status
    return entry.level, entry.message


def test_a_dry_run_does_everything_but_send_commands(make):
    bench = make(control__dry_run=True, limits__upper=[0.001, 1.0, 1.0, 1.0]).start()
    gates = [bench.step() for _ in range(3)]
    assert [gate.decision for gate in gates] == [GateStatus.INFER, GateStatus.INFER, GateStatus.REUSE]
    assert all(gate.dry_run and gate.action[0] == 0.001 and gate.clamped == 1 for gate in gates)
    status = bench.report()
    assert (status.state, status.dry_run, status.steps) == ("running", True, 3)
    assert message(bench) == (OK, "dry run: no command is sent")
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: bench.report().state == "stopped", "the stop, which is seen and not sent")
    bench.node.trigger_deactivate()
    bench.spin(0.1)
    assert not bench.commands
    assert not bench.grippers
    bench.log_line("dry run, no command is sent: 'open the drawer'")


def test_switching_to_a_dry_run_stops_a_robot_that_moves_and_back_again_ramps_it_up(make):
    bench = make(control__ramp_s=60.0, control__speed_scale=1.0, gate__mode="off")
    bench.start()
    assert bench.set("control.ramp_s", 0.0).successful
    moving = bench.step()
    assert bench.commands[-1].twist.linear.x > 0.0
    assert not moving.dry_run
    assert bench.set("control.dry_run", True).successful
    bench.until(lambda: bench.commands[-1].twist.linear.x == 0.0, "the stop action")
    bench.log_line("stopped, dry_run: control.dry_run is true")
    dry = bench.step()
    assert (dry.dry_run, dry.reason, dry.action[0] > 0.0) == (True, "mode_off", True)
    assert len(bench.commands) == 2
    assert bench.set("control.ramp_s", 60.0).successful
    assert bench.set("control.dry_run", False).successful
    first, second = bench.step(), bench.step()
    assert (first.speed_scale, first.action[0]) == (0.0, 0.0)
    assert 0.0 < second.speed_scale < 0.5
    assert bench.commands[-1].twist.linear.x == pytest.approx(second.action[0] / 0.1)


def test_the_scale_slows_every_command_and_is_shown(make):
    bench = make(control__speed_scale=0.25).start()
    full = 0.005
    assert bench.step().action[0] == pytest.approx(0.25 * full)
    assert bench.commands[-1].twist.linear.x == pytest.approx(0.25 * full / 0.1)
    assert bench.grippers[-1].data == 0.01
    assert message(bench) == (OK, "running at 25% speed")
    assert bench.statuses[-1].speed_scale == 0.25
    assert bench.set("control.speed_scale", 0.0).successful
    assert bench.step().action[0] == 0.0
    assert bench.set("control.speed_scale", 1.0).successful
    assert bench.step().action[0] == pytest.approx(full)
    assert message(bench) == (OK, "running")
    assert not bench.set("control.speed_scale", 1.5).successful


def test_latency_from_the_stamp_is_held_to_a_budget(make):
    bench = make(control__latency_budget_s=30.0).start()
    for _ in range(3):
        bench.step()
    assert message(bench) == (OK, "running")
    figures = {value.key: float(value.value) for value in bench.diagnostics[-1].status[0].values if "_s" in value.key}
    ordered = [figures[f"stamp_latency_p{percent}_s"] for percent in (50, 95, 99)]
    assert 0.0 < ordered[0] <= ordered[1] <= ordered[2] < 10.0
    assert figures["stamp_latency_p50_s"] > figures["latency_p50_s"]  # the image's way to the node is in it
    assert bench.set("control.latency_budget_s", 1e-6).successful
    level, words = message(bench)
    assert level == WARN
    assert words.startswith("slow: ")
    assert words.endswith("control.latency_budget_s is 1e-06")
