"""The gripper's sense and middle are declared, and held against the statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import tiny_config, write_checkpoint

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import Settings
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.vla.gripper import check_gripper
from flashvla_ros.vla.loading import load_policy
from flashvla_ros.vla.statistics import Bounds

OPENVLA = {"action.gripper": [1.0, 0.0], "gate.gripper_middle": 0.5}


def bounds(low: float, high: float, *, scaled: bool) -> Bounds:
    action = {"q01": [-0.01] * 3 + [low], "q99": [0.01] * 3 + [high], "mask": [True] * 3 + [scaled]}
    return Bounds.from_statistics({"toy": {"action": action}})


@pytest.mark.parametrize(
    ("values", "low", "high", "scaled"),
    [
        ({}, -1.0, 1.0, True),
        ({}, -1.0, 1.0, False),
        (OPENVLA, 0.0, 1.0, False),
        ({"action.gripper": [0.0, 1.0], "gate.gripper_middle": 0.5}, 0.02, 0.98, False),
        ({"action.gripper": [0.0, 0.08]}, 0.0, 0.08, True),
        ({"action.gripper": []}, 0.0, 1.0, False),
        ({}, 0.3, 0.3, False),
        ({}, float("nan"), 1.0, False),
    ],
)
def test_what_fits_the_statistics_or_cannot_be_held_against_them(values, low, high, scaled):
    check_gripper(Settings().with_values(values), bounds(low, high, scaled=scaled))


@pytest.mark.parametrize(
    ("values", "low", "high", "scaled", "message"),
    [
        (
            {},
            0.0,
            1.0,
            False,
            r"from 0 to 1: set action\.gripper to \[1, 0\] where the greater .* \[0, 1\]",
        ),
        (OPENVLA, -1.0, 1.0, True, r"1 opens and 0 closes, but .* from -1 to 1"),
        ({"action.gripper": [1.0, 0.0]}, 0.0, 1.0, False, r"gate\.gripper_middle is 0, .* set it to 0\.5"),
        ({"gate.gripper_middle": 0.6}, -1.0, 1.0, True, r"gate\.gripper_middle is 0\.6, .* set it to 0$"),
    ],
)
def test_what_the_statistics_contradict(values, low, high, scaled, message):
    with pytest.raises(SettingsError, match=message):
        check_gripper(Settings().with_values(values), bounds(low, high, scaled=scaled))


def test_the_doctor_and_the_node_say_the_same(tmp_path: Path):
    action = {"q01": [-0.01] * 3 + [0.0], "q99": [0.01] * 3 + [1.0], "mask": [True] * 3 + [False]}
    folder = write_checkpoint(tmp_path, tiny_config(norm_stats={"toy": {"action": action}}))
    settings = Settings().with_values({"model.checkpoint": str(folder), "model.device": "cpu"})
    with pytest.raises(SettingsError) as caught:
        load_policy(settings)
    found = {finding.name: finding.text for finding in check_checkpoint(folder, settings)}
    assert found["gripper"] == str(caught.value)
    right = settings.with_values({**OPENVLA, "command.gripper": [0.0, 0.8]})
    load_policy(right)
    found = {finding.name: finding.text for finding in check_checkpoint(folder, right)}
    assert found["gripper"].startswith("1 opens, 0 closes; on gripper_command 0 opens, 0.8 closes; half open at 0.5")
