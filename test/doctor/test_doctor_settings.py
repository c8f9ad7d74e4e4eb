"""What the doctor says of parameters by themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from flashvla_ros.core.settings import Settings
from flashvla_ros.doctor.finding import Finding, Level
from flashvla_ros.doctor.settings import check_certificate, check_settings

JOINT = {"action.names": ["j1", "grip"], "action.kinds": ["absolute", "gripper"], "command.type": "JointTrajectory"}
URDF = '<robot><joint name="j1" type="revolute"><limit lower="{}" upper="{}" velocity="{}"/></joint></robot>'


def limits(values: dict[str, Any]) -> Finding:
    found = {one.name: one for one in check_settings(Settings().with_values(values))}
    assert found["command"].level is Level.OK
    return found["limits"]


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({}, Level.WARNING, "nothing bounds x, y, z: whatever the policy says is commanded"),
        ({"limits.upper": [1.0] * 4}, Level.WARNING, "nothing bounds x, y, z"),
        ({"limits.max_step": [1.0] * 4}, Level.WARNING, "nothing bounds x, y, z"),
        ({"limits.lower": [-1.0] * 4, "limits.upper": [1.0] * 4}, Level.OK, "every dimension is bounded"),
        ({"limits.lower": [-1, -1, -1e9, 0], "limits.upper": [1, 1, 1e9, 1]}, Level.WARNING, "nothing bounds z:"),
        ({"limits.workspace_lower": [0] * 3, "limits.workspace_upper": [1] * 3}, Level.OK, "every"),
        ({"limits.joint_velocity": [1.0] * 4}, Level.OK, "every"),
        ({**JOINT, "limits.joint_velocity": [1.0] * 2}, Level.WARNING, "nothing bounds j1"),
        ({**JOINT, "limits.robot_description": True}, Level.OK, "from the topic robot_description"),
        ({**JOINT, "limits.urdf": URDF.format(-1, 1, 2)}, Level.OK, "every"),
        ({**JOINT, "limits.urdf": URDF.format(-1, 1, 0)}, Level.WARNING, "j1 has no velocity limit"),
        ({**JOINT, "limits.urdf": URDF.format(-1e16, 1e16, 0)}, Level.WARNING, "sets none; nothing bounds j1:"),
        ({**JOINT, "limits.urdf": URDF.format(0, 0, 0)}, Level.FAILURE, "j1 has no range"),
        ({**JOINT, "limits.urdf": "/dev/zero"}, Level.FAILURE, "limits.urdf: cannot read /dev/zero"),
    ],
)
def test_limits_are_told(tmp_path: Path, values: dict[str, Any], level: Level, words: str) -> None:
    if (text := values.get("limits.urdf", "")).startswith("<"):
        path = tmp_path / "arm.urdf"
        path.write_text(text)
        values = {**values, "limits.urdf": str(path)}
    found = limits(values)
    assert (found.level, words in found.text) == (level, True), found


def test_a_decoder_that_shows_damaged_pictures_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = Settings().with_values({"camera.compressed": True})
    for found, installed in ((False, object()), (True, None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name, spec=installed: spec)
        lines = [one for one in check_settings(compressed) if one.name == "pictures"]
        assert bool(lines) is found
        assert all("pip install 'simplejpeg>=1.9'" in one.remedy for one in lines)


def test_a_certificate_that_is_asked_for_and_does_not_fit_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert check_certificate(Settings(), tmp_path).level is Level.OK
    named = Settings().with_values({"evidence.certificate": str(tmp_path / "none.json")})
    found = check_certificate(named, tmp_path)
    assert found.level is Level.WARNING
    assert found.text.startswith("not certified: cannot read")
    assert check_certificate(named, tmp_path / "nowhere").level is Level.FAILURE
