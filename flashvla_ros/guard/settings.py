"""Every parameter of the guard: its own limits and times, and what the commands that it reads mean.

All of them are fixed: whoever can set the policy's parameters cannot widen what the guard lets pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flashvla_ros.control.targets import command_spec
from flashvla_ros.core import parameter
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.parameter import Parameter, Value, row
from flashvla_ros.core.settings import ActionSettings, CommandSettings, LimitsSettings, Settings
from flashvla_ros.core.types import ActionSpec

_URDF = ("limits.urdf", "limits.robot_description")  # the guard depends on no file or topic for its limits


@dataclasses.dataclass(frozen=True)
class WatchSettings:
    """How long the guard waits, and what it does then."""

    timeout_s: float = row(
        0.5, "Silence after a command that moves the robot, after which it is stopped.", unit="s", low=0.02, high=60.0
    )
    max_age_s: float = row(
        2.5,
        "Oldest observation that a command may answer, by its stamp, where its type carries one; 0: any.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    max_transit_s: float = row(
        0.2,
        "Longest time from the publisher to the guard; the clocks of two machines must agree to less; 0: any.",
        unit="s",
        low=0.0,
        high=60.0,
    )
    resume_s: float = row(
        0.3, "Time after the end of a cause before commands pass again.", unit="s", low=0.0, high=60.0
    )
    stop_action: str = row(
        "zero",
        "What stops the robot: velocities become 0, an absolute dimension stays where it was measured (zero) or at "
        "its last target (hold); none: silence.",
        choices=("zero", "hold", "none"),
    )
    state_timeout_s: float = row(
        0.2,
        "Age beyond which joint_states and end_effector_pose no longer say where the robot is; shorter than the "
        "time-outs of the commands, or a stop takes an arm back to where it was.",
        unit="s",
        low=0.02,
        high=60.0,
    )
    gripper: tuple[float, ...] = row((), "Least and greatest value of gripper_command; empty: any that is finite.")
    step_matrix: tuple[float, ...] = row(
        (),
        "W, row by row: the step s between two commands, or rows, passes where |W s| is at most 1, so that a step is "
        "held to how the dimensions move together; flashvla-ros tune --limits writes it; empty: any step.",
    )
    priority: int = row(10, "Priority of the guard's process under SCHED_FIFO; 0: an ordinary process.", low=0, high=99)


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """All parameters of the guard, grouped; ``limits.*`` are in the units of the command message.

    Raises:
        SettingsError: Values contradict each other.
    """

    guard: WatchSettings = WatchSettings()
    limits: LimitsSettings = dataclasses.field(default=LimitsSettings())
    action: ActionSettings = dataclasses.field(default=ActionSettings())
    command: CommandSettings = dataclasses.field(default=CommandSettings())

    def __post_init__(self) -> None:
        names, kinds = self.spec.names, tuple(str(kind) for kind in self.spec.kinds)
        Settings(limits=self.limits, action=ActionSettings(names, kinds, self.action.dt_s))
        if self.guard.step_matrix and len(self.guard.step_matrix) != len(names) ** 2:
            raise SettingsError(
                f"guard.step_matrix must have {len(names) ** 2} values, {len(names)} rows of {len(names)} for "
                f"{list(names)}, or none, got {len(self.guard.step_matrix)}"
            )
        gripper = self.guard.gripper
        if gripper and (len(gripper) != 2 or gripper[0] > gripper[1]):
            raise SettingsError(f"guard.gripper must be a least and a greatest value, or empty, got {list(gripper)}")

    @property
    def spec(self) -> ActionSpec:
        """What the values of a command mean."""
        return command_spec(self.command.type, ActionSpec.of(self.action))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> GuardSettings:
        """Return the defaults with some parameters replaced.

        Raises:
            SettingsError: A parameter is unknown, or its value is refused; names it.
        """
        groups: dict[str, dict[str, Value]] = {}
        for name, value in values.items():
            group, _, field = name.partition(".")
            found = parameter.find(ROWS, name)
            groups.setdefault(group, {})[field] = found.parse(found.from_yaml(value))
        default = cls()
        return cls(**{name: dataclasses.replace(getattr(default, name), **given) for name, given in groups.items()})


ROWS: dict[str, Parameter] = {
    found.name: dataclasses.replace(found, fixed=True)
    for group in dataclasses.fields(GuardSettings)
    for found in parameter.rows_of(group.default, f"{group.name}.")
    if found.name not in _URDF
}
