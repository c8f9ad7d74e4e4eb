"""The benchmark of what ROS adds, short: every frame comes back, and its parts are those of one journey."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.overhead import PARTS

BENCH = [sys.executable, "-m", "benchmarks.overhead"]


@pytest.mark.timeout(400)
def test_a_short_run_gives_every_part_of_a_journey_without_the_model_that_waits():
    command = [*BENCH, "--kind", "jpeg", "--frames", "20", "--rate", "2.5", "--model-s", "0.15"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=350, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    row = json.loads(run.stdout)
    assert row["frame_kib"] < 200
    assert 10 <= row["answered"] <= row["frames"] == 20  # 20 on an idle machine; a busy one may drop frames
    assert all(0.0 < row[f"{part}_p50_ms"] <= row[f"{part}_p99_ms"] for part in PARTS)
    assert row["before_p50_ms"] + row["after_p50_ms"] == pytest.approx(row["node_p50_ms"], rel=0.5)
    assert row["added_p50_ms"] > max(row["transport_p50_ms"], row["node_p50_ms"], row["return_p50_ms"])
    assert row["node_cpu_ms"] > 0.5
    assert row["node_p50_ms"] < 100.0
