"""The benchmark of what ROS adds, short: every frame comes back, and its parts are those of one journey."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.overhead import PARTS

BENCH = [sys.executable, "-m", "benchmarks.overhead"]


@pytest.mark.timeout(400)
def test_a_short_run_gives_every_part_of_every_configuration(tmp_path):
    results = tmp_path / "overhead.json"
    options = ["--frames", "30", "--rate", "10", "--model-s", "0.005", "--json", str(results)]
    run = subprocess.run([*BENCH, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    content = json.loads(results.read_text(encoding="utf-8"))
    builtin, raw, jpeg = content["rows"]
    assert (raw["frame_kib"], raw["frames"]) == (900, 30)
    assert jpeg["frame_kib"] < 200
    assert "as it comes" in builtin["name"]
    for row in (raw, jpeg):  # Fast DDS as it comes may lose any number of raw frames
        assert row["answered"] >= 15  # 30 on an idle machine; a busy one may drop frames for newer ones
        assert all(0.0 < row[f"{part}_p50_ms"] <= row[f"{part}_p99_ms"] for part in PARTS)
        assert row["before_p50_ms"] + row["after_p50_ms"] == pytest.approx(row["node_p50_ms"], rel=0.5)
        assert row["added_p50_ms"] > max(row["transport_p50_ms"], row["node_p50_ms"], row["return_p50_ms"])
        assert row["node_cpu_ms"] > 0.5
    assert run.stdout.count("|") > 4 * len(PARTS)


@pytest.mark.timeout(400)
def test_the_model_that_waits_is_not_counted():
    command = [*BENCH, "--kind", "jpeg", "--frames", "20", "--rate", "5"]
    slow = subprocess.run([*command, "--model-s", "0.15"], capture_output=True, text=True, timeout=350, check=True)
    assert json.loads(slow.stdout)["node_p50_ms"] < 100.0
