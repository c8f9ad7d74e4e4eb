"""Half a minute of the soak that runs for an hour by hand: nothing leaks, and every parameter is answered rightly."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("flashvla_ros.sim.world", exc_type=Exception, reason="EGL or Meta-World is missing")

from benchmarks.soak import Changes
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import find

SOAK = [sys.executable, "-m", "benchmarks.soak"]


@pytest.mark.timeout(900)  # half a minute after the model has started
def test_half_a_minute_of_changes_leaks_nothing(tmp_path):
    results = tmp_path / "soak.json"
    run = subprocess.run([*SOAK, "--minutes", "0.5", "--json", results], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    content = json.loads(results.read_text(encoding="utf-8"))
    meta, rows = content["meta"], content["rows"]
    assert meta["faults"] == []
    assert meta["drift"]["memory_growth"] < 0.01
    assert meta["drift"]["thread_growth"] <= 0
    assert meta["drift"]["handle_growth"] <= 0
    assert sum(row["steps"] for row in rows) > 50
    assert sum(row["changes"] for row in rows) > 10
    assert sum(row["fresh"] for row in rows) < sum(row["steps"] for row in rows)


def test_changes_repeat_reach_every_kind_of_parameter_and_are_judged_by_the_table():
    draws = [Changes(1) for _ in range(2)]
    first, second = ([changes.draw() for _ in range(2000)] for changes in draws)
    assert first == second
    names = {name for name, _, _ in first}
    assert {"gate.mode", "gate.delta", "gate.max_reuse", "pruning.method", "pruning.drop"} <= names
    assert not any(name.startswith(("model.", "action.", "camera.")) for name in names)
    for name, value, accepted in first:
        try:
            find(name).parse(value)
        except SettingsError:
            assert not accepted, (name, value)
        else:
            assert accepted, (name, value)
    assert 0.02 < sum(not accepted for *_, accepted in first) / len(first) < 0.2
