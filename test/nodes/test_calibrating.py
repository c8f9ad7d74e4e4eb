"""Calibration in the node: seen on every topic, not to be overruled, and kept from one start to the next."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from policy_bench import PolicyBench

from flashvla_ros.control.keeping import CalibrationFile
from flashvla_ros.core.settings import Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.nodes import calibrating
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


def test_switched_off_no_threshold_is_looser_than_it_was_and_the_users_own_stay() -> None:
    online = Settings().with_values({"gate.calibration": "online", "gate.tokenless_angle_deg": 30.0})
    for permissiveness, angle_deg in ((-0.01, 0.0), (0.04, 8.0)):
        off = {"gate.calibration": "off"}
        off |= last_thresholds(online, CalibrationState(permissiveness), off)
        gate = online.with_values(off).gate
        assert (gate.max_angle_deg, gate.tokenless_angle_deg) == (pytest.approx(angle_deg), 30.0)


def test_a_disk_that_hangs_stops_no_step_and_no_transition(
    make_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk, reached = threading.Event(), threading.Event()
    save = CalibrationFile.save

    def slow(file: CalibrationFile, state: CalibrationState) -> None:
        reached.set()
        assert disk.wait(30.0)
        save(file, state)

    path = tmp_path / "state.json"
    bench = make_bench(calibration__state_file=str(path)).start()
    monkeypatch.setattr(CalibrationFile, "save", slow)
    bench.step()
    bench.node._calibrating._save()
    assert reached.wait(10.0)
    bench.node._calibrating._save()
    assert "calibration is not kept: the disk does not answer" in capfd.readouterr().err
    assert [bench.step().reason for _ in range(3)] == ["too_few_fresh", "learning", "audit"]
    began = time.monotonic()
    bench.node.trigger_deactivate()
    assert bench.activate()  # waits for no disk, and has what was learnt
    assert time.monotonic() - began < 5.0
    assert bench.node._runner.calibration.coins == 1
    assert not path.exists()
    disk.set()
    bench.node.close("the end of it")  # saves a last time
    assert json.loads(path.read_text())["state"][1] == 1.0  # the coin of the audit


def test_a_node_ends_whatever_the_disk_does(
    make_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = threading.Event()
    bench = make_bench(calibration__state_file=str(tmp_path / "state.json")).start()
    bench.step()
    monkeypatch.setattr(calibrating, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(CalibrationFile, "save", lambda *_: disk.wait(30.0))
    bench.node._calibrating._save()
    bench.node.close("the end of it")
    disk.set()
    assert "the disk has not answered for 0.2 s: calibration's last is lost" in capfd.readouterr().err


def test_a_save_that_fails_is_said_whatever_it_was(
    make_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("of another shape")

    bench = make_bench(calibration__state_file=str(tmp_path / "state.json")).start()
    bench.step()
    monkeypatch.setattr(CalibrationFile, "save", broken)
    bench.node.close("the end of it")
    assert "calibration is not kept: of another shape" in capfd.readouterr().err


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
