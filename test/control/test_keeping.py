"""The file of what calibration has learnt: taken up, refused, whole after a kill, and one node's alone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flashvla_ros.control.keeping import CalibrationFile
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.gate.calibration import CalibrationState

LEARNT = CalibrationState(0.42, coins=7, steps=90, chances=7, audits=2, off=1, certified=3, claim="open the drawer")
CONTRADICTIONS = [
    dataclasses.replace(LEARNT, **change).packed().tolist()
    for change in (
        {"off": 3},
        {"off": -1},
        {"audits": 8},
        {"certified": 21},
        {"permissiveness": 1.5},
        {"permissiveness": -1e9},
        {"steps": -1},
    )
]
# Saves states without end, as a node that learns would, and says when it has begun.
WRITER = """
import itertools, sys
from pathlib import Path
from flashvla_ros.control.keeping import CalibrationFile
from flashvla_ros.gate.calibration import CalibrationState
file = CalibrationFile(Path(sys.argv[1]), "c")
for count in itertools.count(1):
    file.save(CalibrationState(0.5, coins=count))
    if count == 3:
        print("saving", flush=True)
"""


def test_what_was_saved_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    file = CalibrationFile(path, "c" * 64)
    assert file.read().permissiveness == 0.0
    file.save(LEARNT)
    file.close()
    again = CalibrationFile(path, "c" * 64).read()
    assert again.claim == LEARNT.claim
    np.testing.assert_array_equal(again.packed(), LEARNT.packed())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checkpoint": "d"}, "of another checkpoint"),
        ({"version": 99}, "of another version"),
        ({"state": [1.0]}, "holds no calibration"),
        ({"claim": None, "state": None}, "holds no calibration"),
        ({"state": [10**400] * 200}, "holds no calibration"),
        *(({"state": other}, "its counts contradict each other") for other in CONTRADICTIONS),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    file = CalibrationFile(tmp_path / "state.json", "c")
    file.save(LEARNT)
    file.path.write_text(json.dumps(json.loads(file.path.read_text()) | change))
    with pytest.raises(SettingsError, match=reason) as refused:
        file.read()
    assert "\n" not in str(refused.value)


def test_two_nodes_do_not_share_a_file(tmp_path: Path) -> None:
    first = CalibrationFile(tmp_path / "state.json", "c")
    with pytest.raises(SettingsError, match="in use by another node"):
        CalibrationFile(tmp_path / "state.json", "c")
    (tmp_path / "link.json").symlink_to(tmp_path / "state.json")
    with pytest.raises(SettingsError, match="in use by another node"):
        CalibrationFile(tmp_path / "link.json", "c")
    first.close()
    CalibrationFile(tmp_path / "state.json", "c").close()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for folder in (tmp_path, Path("/")):
        with pytest.raises(SettingsError, match="is a folder: name a file"):
            CalibrationFile(folder, "c")


def test_a_kill_between_two_saves_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "saving\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    file = CalibrationFile(path, "c")
    assert file.read().coins >= 2
