"""Rotations: quaternions, Euler angles about fixed axes (roll, pitch, yaw, as REP 103 and URDF have them), vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from flashvla_ros.core.types import POSE_NAMES, QUATERNION_NAMES

Quaternion = tuple[float, float, float, float]  # x, y, z, w


def quaternion_of(rx: float, ry: float, rz: float) -> Quaternion:
    """Return the unit quaternion of a turn by `rx` about x, then `ry` about y, then `rz` about z, axes fixed [rad]."""
    cx, cy, cz = (math.cos(angle / 2) for angle in (rx, ry, rz))
    sx, sy, sz = (math.sin(angle / 2) for angle in (rx, ry, rz))
    return (
        sx * cy * cz - cx * sy * sz,
        cx * sy * cz + sx * cy * sz,
        cx * cy * sz - sx * sy * cz,
        cx * cy * cz + sx * sy * sz,
    )


def euler_of(quaternion: Sequence[float]) -> tuple[float, float, float]:
    """Return rx, ry, rz [rad] of a unit quaternion x, y, z, w; ry within ±π/2, where rx and rz turn alike rx is 0."""
    x, y, z, w = quaternion
    sine = 2.0 * (w * y - z * x)
    if abs(sine) > 1.0 - 1e-12:  # the first and the last axis coincide
        return 0.0, math.copysign(math.pi / 2, sine), math.copysign(2.0, -sine) * math.atan2(x, w)
    return (
        math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)),
        math.asin(sine),
        math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)),
    )


def named_pose(position: Iterable[float], quaternion: Iterable[float]) -> dict[str, float]:
    """Return a pose [m, and a unit quaternion x, y, z, w] by the names of its dimensions, Euler angles [rad] too."""
    place, turn = map(float, position), tuple(map(float, quaternion))
    return dict(zip(POSE_NAMES, (*place, *euler_of(turn), *turn), strict=True))


def with_rotation_vector(positions: Mapping[str, float]) -> dict[str, float]:
    """Return positions by name with ax, ay and az [rad], the axis times the angle, where there is a unit quaternion.

    As LIBERO's states have it; robosuite's ``quat2axisangle``, whose angle 2 acos(w) is from 0 to 2π. A joint that is
    called so keeps its position.
    """
    if not positions.keys() >= set(QUATERNION_NAMES):
        return dict(positions)
    *axis, w = (positions[name] for name in QUATERNION_NAMES)
    w = min(max(w, -1.0), 1.0)
    sine = math.sqrt(1.0 - w * w)
    turn = [value * 2.0 * math.acos(w) / sine if sine > 0.0 else 0.0 for value in axis]
    return {**dict(zip(("ax", "ay", "az"), turn, strict=True)), **positions}


def normalised(quaternion: Sequence[float]) -> Quaternion:
    """Return a quaternion scaled to length 1.

    Raises:
        ValueError: It has no direction: its length is below 0.1, or not finite.
    """
    length = math.hypot(*quaternion)
    if not 0.1 <= length < math.inf:
        raise ValueError(f"a quaternion of length {length:.3g} is no rotation")
    x, y, z, w = (value / length for value in quaternion)
    return x, y, z, w
