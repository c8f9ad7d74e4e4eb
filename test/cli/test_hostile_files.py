"""Every command that reads a file, with files that were made to do harm: one line and an exit code, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flashvla_ros.__main__ import main

COMMANDS = {
    "replay": ["replay", "FILE"],
    "replay --settings": ["replay", "run", "--settings", "FILE"],
    "tune": ["tune", "FILE", "--html", "OUT", "--yaml", "OUT"],
    "doctor --settings": ["doctor", "--checkpoint", "EMPTY", "--settings", "FILE"],
    "doctor --checkpoint": ["doctor", "--checkpoint", "FILE"],
    "doctor, config.json": ["doctor", "--checkpoint", "CONFIG"],
    "eval --modes-file": ["eval", "--modes-file", "FILE", "--modes", "dense"],
    "eval --report": ["eval", "--report", "FILE"],
    "eval --checkpoint": ["eval", "--checkpoint", "FILE"],
    "bench --read": ["bench", "--read", "FILE"],
    "bench --trace": ["bench", "--trace", "FILE"],
    "bringup": ["bringup", "--params", "FILE"],
    "bringup --guard-params": ["bringup", "--guard-params", "FILE"],
    "certify --modes-file": ["certify", "--modes-file", "FILE", "--out", "OUT"],
    "serve --checkpoint": ["serve", "--checkpoint", "FILE"],
    "serve --params": ["serve", "--params", "FILE"],
    "serve --api-key-file": ["serve", "--api-key-file", "FILE"],
    "tune --limits": ["tune", "FILE", "--limits", "OUT"],
    "tune --score": ["tune", "FILE", "--score", "OUT"],
}


def hostile(folder: Path, kind: str) -> Path:
    path = folder / "hostile"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "brackets":
        path.write_text("[" * 300_000)
    elif kind == "bytes":
        path.write_bytes(bytes(range(128, 256)) * 99)
    return path


@pytest.mark.parametrize("kind", ["missing", "pipe", "loop", "endless", "brackets", "bytes"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_ends_in_one_line(tmp_path: Path, command: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile(tmp_path, kind)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").symlink_to(path)
    words = {"FILE": str(path), "CONFIG": str(checkpoint), "EMPTY": str(tmp_path), "OUT": str(tmp_path / "out")}
    started_s = time.monotonic()
    code = main([words.get(word, word) for word in COMMANDS[command]])
    assert time.monotonic() - started_s < 60.0  # most of it imports
    output = capsys.readouterr()
    assert code in (1, 2)
    lines = [line for line in (output.err + output.out).splitlines() if str(path) in line or str(checkpoint) in line]
    assert lines, output
    assert all(len(line) < 600 for line in lines)
    assert "Traceback" not in output.err + output.out
