"""The gate's benchmark, short: a row for each part, and alarms that are right where the object was shoved far."""

from __future__ import annotations

import pytest

pytest.importorskip("flashvla_ros.sim.world", exc_type=Exception, reason="EGL or Meta-World is missing")

from benchmarks import gate


def test_every_part_is_timed_at_every_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "SIZES", ((48, 64), (96, 128)))
    rows = list(gate.cost(10))
    assert [row["frame"] for row in rows] == ["64 x 48"] * 4 + ["128 x 96"] * 4
    assert all(0.0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows)


def test_calibrated_steps_are_repeated_and_what_they_hold_is_told():
    row = gate.memory(30)
    assert row["steps"] == 30
    assert 0 < row["held_kib"][0] <= 1.2 * row["held_kib"][1]
    meta = {"device": "here", "versions": {"numpy": "x"}, "repeats": 1, "episodes": 1, "seed": 2000}
    assert "30 calibrated steps: " in gate.page({"meta": meta, "rows": [row]})


def test_alarms_are_counted_and_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate, "CAMERAS", ((112, 4.0),))
    monkeypatch.setattr(gate, "TASKS", {"drawer-open": gate.TASKS["drawer-open"]})
    (row,) = gate.alarms(1, 2000)
    counts = row["alarms"]
    caught, trials = counts["caught, 8 cm"]
    assert caught >= 0.9 * trials > 0
    assert all(0 <= alarms <= trials for alarms, trials in counts.values())
    assert counts["false, age 1"][0] < 0.1 * counts["false, age 1"][1]
    meta = {"device": "here", "versions": {"numpy": "x"}, "repeats": 1, "episodes": 1, "seed": 2000}
    page = gate.page({"meta": meta, "rows": [row]})
    assert "| 112 x 112, noise 4 |" in page and f"of {trials} (" in page
