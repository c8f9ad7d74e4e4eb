"""The encoder that the parameters ask for: one message for the motion, one for the gripper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Float64, Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory

from flashvla_ros.control.command_rules import check_command
from flashvla_ros.core.settings import CommandSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray
from flashvla_ros.nodes.commands.cartesian import pose_encoder, twist_encoder
from flashvla_ros.nodes.commands.joints import array_encoder, trajectory_encoder

Positions = Mapping[str, float]
MotionEncoder = Callable[[FloatArray, Header, Positions], Any]

# Message type, and what makes one of the motion [T, D]; given the indices of the dimensions that move.
COMMAND_TYPES: dict[str, type[Any]] = {
    "TwistStamped": TwistStamped,
    "PoseStamped": PoseStamped,
    "JointTrajectory": JointTrajectory,
    "Float64MultiArray": Float64MultiArray,
}
_ENCODERS: dict[str, Callable[[ActionSpec, list[int]], MotionEncoder]] = {
    "TwistStamped": twist_encoder,
    "PoseStamped": pose_encoder,
    "JointTrajectory": trajectory_encoder,
    "Float64MultiArray": array_encoder,
}


@dataclasses.dataclass(frozen=True)
class Command:
    """The messages of one control step; `gripper` is None where the action has no gripper."""

    motion: Any
    gripper: Float64 | None


Encoder = Callable[[FloatArray, Header, Positions], Command]


def make_encoder(
    settings: CommandSettings, spec: ActionSpec, gripper_ends: Sequence[float] = ()
) -> tuple[type[Any], Encoder]:
    """Return the type of the command topic and what turns an action [T, D] into its messages.

    The dimension of kind ``gripper`` leaves on its own topic; all others make the command. The encoder is also told
    where the robot is, by the name of a dimension, because some commands count from there.

    Args:
        settings: Type of the command, and what gripper_command says.
        spec: The action's dimensions.
        gripper_ends: What the action says to open and to close the gripper: ``action.gripper``.

    Raises:
        SettingsError: The message type cannot carry an action of these names and kinds; names both.
    """
    check_command(settings.type, spec)
    gripper = next((index for index, kind in enumerate(spec.kinds) if kind is ActionKind.GRIPPER), None)
    scale = _gripper_scale(gripper_ends, settings.gripper)
    encode = _ENCODERS[settings.type](spec, [index for index in range(spec.size) if index != gripper])

    def encoder(action: FloatArray, header: Header, positions: Positions) -> Command:
        closing = None if gripper is None else Float64(data=scale(float(action[0, gripper])))
        return Command(encode(action, header, positions), closing)

    return COMMAND_TYPES[settings.type], encoder


def _gripper_scale(said: Sequence[float], sent: Sequence[float]) -> Callable[[float], float]:
    """Return what maps the action's [open, closed] to that of the topic, in proportion between them."""
    if not said or not sent:
        return lambda value: value
    (opens, closes), (open_sent, closed_sent) = said, sent
    slope = (closed_sent - open_sent) / (closes - opens)
    return lambda value: open_sent + slope * (value - opens)
