"""Which trials of the guard a file already holds."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("rclpy", exc_type=ImportError)

from benchmarks import guard_trials
from flashvla_ros.cli.results import read_results


def test_what_other_code_or_fewer_trials_have_shown_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tried = tmp_path / "trials.json", []

    def run_kind(name: str, joints: bool, trials: int) -> dict[str, object]:
        tried.append((name, joints))
        return {"kind": name, "command": "absolute joints" if joints else "twist", "trials": trials}

    monkeypatch.setattr(guard_trials, "run_kind", run_kind)
    for code, kinds, trials, expected in (
        ("one", ["SIGKILL", "writer gone"], 2, 4),
        ("one", ["SIGKILL", "writer gone"], 2, 0),
        ("two", ["SIGKILL"], 2, 2),
        ("two", ["SIGKILL"], 3, 2),
    ):
        tried.clear()
        monkeypatch.setattr(guard_trials, "code_of_trials", lambda code=code: code)
        guard_trials._run(argparse.Namespace(json=file, kinds=kinds, trials=trials))
        assert len(tried) == expected
    rows = read_results(file)["rows"]
    assert [(row["kind"], row["code"], row["trials"]) for row in rows] == [
        *[("writer gone", "one", 2)] * 2,
        *[("SIGKILL", "two", 3)] * 2,
    ]


def test_the_code_of_the_trials_has_a_name() -> None:
    assert len(guard_trials.code_of_trials()) == 16
