"""What leaves on gripper_command."""

from __future__ import annotations

import numpy as np
import pytest
from std_msgs.msg import Header

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.nodes.commands import make_encoder


def sent(value: float, **values: list[float]) -> float:
    settings = Settings().with_values({name.replace("_", ".", 1): ends for name, ends in values.items()})
    _, encode = make_encoder(settings.command, ActionSpec.of(settings.action), settings.action.gripper)
    command = encode(np.array([[0.0, 0.0, 0.0, value]]), Header(), {})
    assert command.gripper is not None
    return command.gripper.data


def test_the_value_leaves_as_it_is_unless_the_controllers_own_values_are_declared() -> None:
    assert sent(0.25) == 0.25
    assert sent(0.25, action_gripper=[1.0, 0.0]) == 0.25


@pytest.mark.parametrize(("value", "expected"), [(1.0, 0.0), (0.0, 0.8), (0.25, 0.6)])
def test_open_and_closed_become_the_controllers_own(value: float, expected: float) -> None:
    assert sent(value, action_gripper=[1.0, 0.0], command_gripper=[0.0, 0.8]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"action.gripper": [1.0]}, r"action\.gripper must be \[open, closed\]"),
        ({"action.gripper": [1.0, 1.0]}, "two different values"),
        ({"command.gripper": [0.0, 1.0, 2.0]}, r"command\.gripper must be \[open, closed\]"),
        ({"action.gripper": [], "command.gripper": [0.0, 1.0]}, r"command\.gripper needs action\.gripper"),
    ],
)
def test_what_is_no_pair_is_refused(values: dict[str, list[float]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings().with_values(values)
