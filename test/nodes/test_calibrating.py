"""Calibration in the node: seen on every topic, not to be overruled, and kept from one start to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_bench import PolicyBench

from flashvla_ros.core.settings import Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.nodes.calibrating import last_thresholds

ONLINE = {"gate__calibration": "online", "calibration__risk": 0.5, "calibration__audit_rate": 1.0}


@pytest.fixture
def make_bench() -> Iterator[Any]:
    benches: list[PolicyBench] = []

    def make(**values: Any) -> PolicyBench:
        benches.append(PolicyBench(**{**ONLINE, **values}))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def test_what_it_learns_is_seen_and_nobody_overrules_it(make_bench: Any) -> None:
    bench = make_bench().start()
    gates = [bench.step() for _ in range(12)]
    assert [gate.reason for gate in gates[:4]] == ["start", "too_few_fresh", "learning", "audit"]
    levels = [gate.permissiveness for gate in gates]
    assert levels[:3] == [0.0, 0.0, 0.0]
    assert levels == sorted(levels)
    assert gates[-1].max_reuse == 1
    assert gates[-1].off == 0
    assert math.isinf(gates[0].need)
    assert len(gates[-1].calibration_state) == len(gates[0].calibration_state) > 40
    status = bench.report()
    assert (status.calibration, status.audits) == ("online", 8)
    assert (status.permissiveness, status.delta) == (levels[-1], gates[-1].delta)
    assert 0.0 == status.off_per_step < status.off_per_step_high < 1.0
    assert status.certificate.startswith("not certified: the certificate is of another checkpoint")
    refused = bench.set("gate.delta", 0.9)
    assert not refused.successful
    assert refused.reason.startswith("gate.delta cannot be set while gate.calibration is online")
    assert bench.set("gate.fresh_between", 2).successful
    # Off again: the last thresholds stay, and now they are the user's.
    assert bench.set("gate.calibration", "off").successful
    gate, after = bench.node.settings.gate, bench.step()
    assert gate.delta == pytest.approx(1.0 - bench.node._runner.calibration.permissiveness)
    assert (after.calibration, after.delta, after.max_angle_deg) == ("off", gate.delta, gate.max_angle_deg)
    assert math.isnan(after.permissiveness)
    assert bench.set("gate.delta", 0.9).successful


def test_switched_off_no_threshold_is_looser_than_it_was() -> None:
    online = Settings().with_values({"gate.calibration": "online", "gate.tokenless_angle_deg": 30.0})
    kept = last_thresholds(online, CalibrationState(0.04), {"gate.calibration": "off"})
    assert kept["gate.tokenless_angle_deg"] == kept["gate.max_angle_deg"] < 30.0


def test_it_is_taken_up_again_and_by_one_node_alone(make_bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    bench = make_bench(calibration__state_file=str(file)).start()
    for _ in range(6):
        bench.step()
    learnt = bench.node._runner.calibration
    assert learnt.permissiveness > 0.0
    other = make_bench(calibration__state_file=str(file), namespace="other")
    assert not other.activate()
    assert "in use by another node" in other.node.transition_error
    bench.node.trigger_deactivate()
    assert bench.activate()
    assert bench.node._runner.calibration.permissiveness == learnt.permissiveness
    bench.node.close("the end of it")
    again = make_bench(calibration__state_file=str(file), namespace="again").start()
    assert again.step().permissiveness == learnt.permissiveness
