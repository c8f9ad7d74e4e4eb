"""Child processes: their output, their end, and that they do not outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashvla_ros.bringup.children import Child, stop_all


def until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def start(code: str, lines: list[str], *, verbose: bool = False) -> Child:
    return Child("child", [sys.executable, "-S", "-c", code], lines.append, verbose=verbose)


def test_problems_are_shown_and_last_words_kept():
    lines: list[str] = []
    child = start("print('[INFO] fine'); print('[ERROR] broken'); raise SystemExit(3)", lines)
    until(lambda: child.code is not None, "the end")
    assert child.code == 3
    assert child.last_lines == ["[INFO] fine", "[ERROR] broken"]
    assert lines == ["child: [ERROR] broken"]


def test_verbose_shows_everything():
    lines: list[str] = []
    child = start("print('one'); print('two')", lines, verbose=True)
    until(lambda: child.code is not None, "the end")
    assert child.last_lines == ["one", "two"]
    assert lines == ["child: one", "child: two"]


def test_stop_interrupts_and_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("flashvla_ros.bringup.children._GRACE_S", 60.0)  # a busy machine may be slow to end it
    done = tmp_path / "done"
    code = f"""
import pathlib, time
try:
    print("[WARN] ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(done)!r}).touch()
"""
    lines: list[str] = []
    child = start(code, lines)
    until(lambda: bool(lines), "the start")
    assert child.stop() == 0
    assert done.exists()
    assert child.stop() == 0
    stop_all([child])


def test_who_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr("flashvla_ros.bringup.children._GRACE_S", 0.2)
    lines: list[str] = []
    ignore = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    child = start(f"{ignore}; print('[WARN] x', flush=True); time.sleep(60)", lines)
    until(lambda: bool(lines), "the start")
    assert child.stop() == -signal.SIGKILL
    assert lines[-1] == "child does not end after 0.2 s; it is killed"


@pytest.mark.skipif(sys.platform != "linux", reason="a service of the Linux kernel")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path):
    path = tmp_path / "pid"
    code = f"""
import pathlib, sys, time
from flashvla_ros.bringup.children import Child
child = Child("child", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], print, verbose=True)
pathlib.Path({str(path)!r}).write_text(str(child._process.pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    until(lambda: path.exists() and bool(path.read_text()), "the child")
    pid = int(path.read_text())
    os.kill(pid, 0)
    parent.kill()
    parent.wait()
    until(lambda: not _alive(pid), "the end of the child")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie waits for whoever adopted it
