"""``flashvla-ros bringup`` as a user runs it: separate processes, real DDS, a table, a results file, a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("flashvla_ros.sim.world", exc_type=Exception, reason="EGL or Meta-World is missing")

from checkpoints import write_checkpoint

from flashvla_ros.vla.random_checkpoint import config_of_size, write_random_checkpoint

pytestmark = pytest.mark.timeout(600)  # each starts a model; far less where the machine is idle

BRINGUP = [sys.executable, "-m", "flashvla_ros", "bringup"]


def children_of(pid: int) -> set[int]:
    """Processes that were started by `pid`."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="utf-8").rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(status.parent.name))
    return found


def test_one_episode_is_counted_recorded_and_written(tmp_path):
    results, bag = tmp_path / "out" / "results.json", tmp_path / "bag"
    options = ["--task", "drawer-close", "--episodes", "1", "--lock-step", "--seed", "3"]
    # OpenVLA-7B's layout at a small size: shards with an index, two towers, two data sets to choose from, bfloat16.
    write_random_checkpoint(tmp_path / "model", config_of_size("tiny"), shard_bytes=2_100_000)
    options += ["--checkpoint", str(tmp_path / "model"), "--json", str(results), "--record", str(bag)]
    options += ["--set", "model.unnorm_key=random_4d", "--set", "model.dtype=bfloat16"]
    run = subprocess.run([*BRINGUP, *options], capture_output=True, text=True, timeout=550, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0].startswith("loading the policy and the simulation")
    header = next(index for index, line in enumerate(lines) if line.startswith("episode "))
    assert lines[header].split() == ["episode", "instruction", "success", "steps", "reuse", "p50", "ms", "p95", "ms"]
    assert lines[header + 1].split()[:4] == ["0", "close", "the", "drawer"]
    assert "of 1 episodes succeeded" in lines[-1]
    content = json.loads(results.read_text(encoding="utf-8"))
    [row] = content["rows"]
    assert list(row) == [
        "mode",
        "task",
        "episodes",
        "successes",
        "reuse_rate",
        "visual_flops_ratio",
        "latency_p50_ms",
        "latency_p95_ms",
    ]
    assert (row["mode"], row["task"], row["episodes"]) == ("guarded", "drawer-close", 1)
    assert 0.0 < row["visual_flops_ratio"] < 1.0
    assert 0.0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
    assert content["meta"]["settings"]["gate.mode"] == "guarded"
    assert content["meta"]["device"] == "cpu"
    assert list(bag.glob("*.mcap"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_or_a_closed_terminal_ends_everything_with_a_summary(tmp_path, number):
    model = write_checkpoint(tmp_path / "model")
    process = subprocess.Popen(
        [*BRINGUP, "--checkpoint", str(model), "--verbose"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(550, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        assert any(", step " in line for line in process.stdout)  # the first may be lost: nodes still find each other
        children = children_of(process.pid)
        assert len(children) == 3  # policy, guard, robot
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait() == 0
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
    assert "stopped, deactivated: SIGINT" in rest
    assert "steps, " in rest.splitlines()[-1]
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_dies_takes_all_down_and_its_last_words_are_shown(tmp_path):
    (tmp_path / "empty").mkdir()
    options = ["--checkpoint", str(tmp_path / "empty"), "--json", str(tmp_path / "out.json")]
    run = subprocess.run([*BRINGUP, *options], capture_output=True, text=True, timeout=550, check=False)
    assert run.returncode == 2, run.stdout
    assert str(tmp_path / "empty") in run.stdout
    assert "flashvla ended with exit code 2; everything is stopped" in run.stdout.splitlines()[-1]
    assert "Traceback" not in run.stdout + run.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "drawer-opne"], "did you mean drawer-open"),
        (["--set", "gate.delta=1.5"], "gate.delta must be from 0 to 1"),
        (["--set", "gate.detla=0.5"], "did you mean gate.delta"),
        (["--params", "/nowhere.yaml"], "no parameter file /nowhere.yaml"),
        (["--camera", "/image", "--episodes", "1"], "belong to the simulated robot"),
        (["--episodes", "-1"], "must be a whole number, 0 or more, got '-1'"),
        (["--episodes", "three"], "must be a whole number, 0 or more, got 'three'"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(options, words):
    run = subprocess.run([*BRINGUP, *options], capture_output=True, text=True, timeout=550, check=False)
    assert run.returncode == 2
    assert words in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
