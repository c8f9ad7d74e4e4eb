"""Actions as ROS messages: which dimension goes where, checked once before anything moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64, Float64MultiArray, Header, MultiArrayDimension

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import CommandSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray

# Dimension of an action to part and axis of a twist. The demo's and OpenVLA's end-effector actions use these names.
_TWIST_FIELDS = {
    "x": ("linear", "x"),
    "y": ("linear", "y"),
    "z": ("linear", "z"),
    "rx": ("angular", "x"),
    "ry": ("angular", "y"),
    "rz": ("angular", "z"),
}


@dataclasses.dataclass(frozen=True)
class Command:
    """The messages of one control step; `gripper` is None where the action has no gripper."""

    motion: Any
    gripper: Float64 | None


Encoder = Callable[[FloatArray, Header], Command]


def make_encoder(settings: CommandSettings, spec: ActionSpec) -> tuple[type[Any], Encoder]:
    """Return the type of the command topic and what turns an action [T, D] into its messages.

    The dimension of kind ``gripper`` leaves on its own topic; all others make the command.

    Raises:
        SettingsError: The message type cannot carry an action of these names and kinds; names both.
    """
    grippers = [index for index, kind in enumerate(spec.kinds) if kind is ActionKind.GRIPPER]
    if len(grippers) > 1:
        names = [spec.names[index] for index in grippers]
        raise SettingsError(f"gripper_command carries one value, but action.kinds declares {len(grippers)}: {names}")
    gripper = grippers[0] if grippers else None
    motion = [index for index in range(spec.size) if index != gripper]
    encode = _MOTION_ENCODERS[settings.type](spec, motion)
    message_type = _MESSAGE_TYPES[settings.type]

    def encoder(action: FloatArray, header: Header) -> Command:
        closing = None if gripper is None else Float64(data=float(action[0, gripper]))
        return Command(encode(action, header), closing)

    return message_type, encoder


def _twist_encoder(spec: ActionSpec, motion: list[int]) -> Callable[[FloatArray, Header], TwistStamped]:
    """The first time step as a velocity: a delta is divided by the time that it covers."""
    wrong = [spec.names[index] for index in motion if spec.names[index] not in _TWIST_FIELDS]
    if wrong:
        raise SettingsError(
            f"command.type TwistStamped carries {list(_TWIST_FIELDS)}, but action.names is {list(spec.names)}: "
            f"rename {wrong}, or use Float64MultiArray"
        )
    absolute = [spec.names[index] for index in motion if spec.kinds[index] is ActionKind.ABSOLUTE]
    if absolute:
        raise SettingsError(
            f"command.type TwistStamped is a velocity, but action.kinds makes {absolute} absolute: "
            f"use Float64MultiArray"
        )
    fields = [
        (index, *_TWIST_FIELDS[spec.names[index]], 1.0 / spec.dt_s if spec.kinds[index] is ActionKind.DELTA else 1.0)
        for index in motion
    ]

    def encode(action: FloatArray, header: Header) -> TwistStamped:
        message = TwistStamped(header=header)
        for index, part, axis, per_second in fields:
            setattr(getattr(message.twist, part), axis, float(action[0, index]) * per_second)
        return message

    return encode


def _array_encoder(spec: ActionSpec, motion: list[int]) -> Callable[[FloatArray, Header], Float64MultiArray]:
    """Every time step in the action's own units; the layout's labels carry the spacing and the names."""
    names = ",".join(spec.names[index] for index in motion)

    def encode(action: FloatArray, _header: Header) -> Float64MultiArray:
        values = action[:, motion]
        message = Float64MultiArray(data=values.ravel().tolist())
        message.layout.dim = [
            MultiArrayDimension(label=f"time:{spec.dt_s:g}", size=values.shape[0], stride=values.size),
            MultiArrayDimension(label=names, size=values.shape[1], stride=values.shape[1]),
        ]
        return message

    return encode


_MESSAGE_TYPES: dict[str, type[Any]] = {"TwistStamped": TwistStamped, "Float64MultiArray": Float64MultiArray}
_MOTION_ENCODERS: dict[str, Callable[[ActionSpec, list[int]], Callable[[FloatArray, Header], Any]]] = {
    "TwistStamped": _twist_encoder,
    "Float64MultiArray": _array_encoder,
}
