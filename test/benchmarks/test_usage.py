"""A run's end against its start: what leaks is found, what merely varies is not."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.usage import Drift, Usage, Window, spin_s


def run(
    windows: int = 24, memory: float = 0.0, threads: int = 0, handles: int = 0, latency: float = 0.0
) -> list[Window]:
    """A run of 10 samples a window that grows evenly by these shares and numbers from its first window to its last."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(windows):
        t = index / (windows - 1)
        rss = round(400_000 * (1 + memory * t))
        usage = [Usage(rss, rss, 20 + round(threads * t), 18 + round(handles * t), index + k / 10) for k in range(10)]
        latency_s = list(rng.uniform(0.01, 0.05, 100) * (1 + latency * t))
        made.append(Window(60.0 * index, usage, latency_s, fresh=50, set_s=[0.01], spin_s=[0.005] * 10))
    return made


def test_a_steady_run_has_neither_leaks_nor_slowness():
    drift = Drift.of(run())
    assert drift.leaks() == []
    assert drift.slowness() == []
    assert drift.memory_growth == 0.0
    assert drift.spin_growth == 0.0


@pytest.mark.parametrize(
    ("growth", "words"),
    [({"memory": 0.02}, "memory grew by 1"), ({"threads": 4}, "more threads"), ({"handles": 4}, "more open files")],
)
def test_what_grows_is_found(growth, words):
    [fault] = Drift.of(run(**growth)).leaks()
    assert words in fault


def test_memory_may_grow_while_the_run_warms_up():
    windows = run()
    for window in windows[:3]:
        window.usage = [Usage(200_000, 200_000, 12, 10, usage.cpu_s) for usage in window.usage]
    assert Drift.of(windows).leaks() == []


def test_a_slower_end_is_found_and_a_faster_one_is_none():
    [fault] = Drift.of(run(latency=0.3)).slowness()
    assert "latency p99 grew by" in fault
    assert Drift.of(run(latency=-0.3)).slowness() == []


def test_a_run_without_steps_at_its_end_is_not_called_fast():
    windows = run()
    for window in windows[-6:]:
        window.latency_s = []
    assert math.isnan(Drift.of(windows).latency_growth)
    assert Drift.of(windows).slowness()


def test_too_short_a_run_is_refused():
    with pytest.raises(ValueError, match="at least 6 windows, got 5"):
        Drift.of(run()[:5])


def test_a_row_sums_a_window_up():
    row = run()[0].row()
    assert (row["rss_mib"], row["threads"], row["handles"], row["steps"]) == (390.62, 20, 18, 100)
    assert row["cpu_ms_a_step"] == pytest.approx(9.0)
    assert 25.0 < row["latency_p50_ms"] < 35.0 < row["latency_p99_ms"] <= 50.0
    assert row["spin_p50_ms"] == 5.0


def test_usage_sees_a_thread_a_file_and_memory_of_this_process(tmp_path):
    before = Usage.of(os.getpid())
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    block = np.ones(16 << 20)  # too large for what malloc keeps, so the memory is new
    with (tmp_path / "file").open("w"):
        during = Usage.of(os.getpid())
    done.set()
    thread.join()
    assert during.threads - before.threads == 1
    assert during.handles - before.handles == 1
    assert during.rss_kib - before.rss_kib >= 0.9 * block.nbytes / 1024
    assert during.anonymous_kib <= during.rss_kib
    spin_s()
    assert Usage.of(os.getpid()).cpu_s >= before.cpu_s


def test_usage_of_a_process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
    assert Path(f"/proc/{process.pid}").exists()
    with pytest.raises(ProcessLookupError, match="has ended"):
        Usage.of(process.pid)
    process.wait()
    with pytest.raises(ProcessLookupError):
        Usage.of(process.pid)
