"""Quaternions and Euler angles, held to scipy's on random orientations and on those where formulas break."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flashvla_ros.core.rotations import euler_of, normalised, quaternion_of, with_rotation_vector

TURN, QUARTER = math.pi, math.pi / 2
RANDOM = np.random.default_rng(11).uniform(-TURN, TURN, (2000, 3)) * (1.0, 0.5, 1.0)
# No turn, half turns about each axis, tiny ones, and every sign of many roll, pitch and yaw.
SPECIAL = [
    (0.0, 0.0, 0.0),
    (TURN, 0.0, 0.0),
    (0.0, TURN, 0.0),
    (0.0, 0.0, TURN),
    (-TURN, 0.0, TURN),
    (1e-9, -1e-9, 1e-9),
    (1e-4, 0.0, -1e-4),
    *((roll, pitch, yaw) for roll in (-2.0, 0.3) for pitch in (-1.5, 0.4) for yaw in (-3.0, 0.2)),
]
LOCKED = [(roll, pitch, yaw) for roll in (-3.0, 0.0, 0.7) for pitch in (-QUARTER, QUARTER) for yaw in (-2.0, 0.0, 1.1)]
NEARLY_LOCKED = [(0.7, sign * (QUARTER - gap), -1.1) for sign in (-1, 1) for gap in (1e-3, 1e-5, 1e-7, 1e-9)]


def theirs(angles: tuple[float, float, float]) -> Rotation:
    return Rotation.from_euler("xyz", angles)  # small letters: axes that stay


def apart(quaternion: tuple[float, ...], rotation: Rotation) -> float:
    return float((Rotation.from_quat(quaternion) * rotation.inv()).magnitude())


@pytest.mark.parametrize("angles", SPECIAL + LOCKED + NEARLY_LOCKED)
def test_special_orientations_are_scipys_and_come_back(angles: tuple[float, float, float]) -> None:
    quaternion = quaternion_of(*angles)
    assert math.hypot(*quaternion) == pytest.approx(1.0, abs=1e-15)
    assert apart(quaternion, theirs(angles)) < 1e-14
    back = euler_of(quaternion)
    assert abs(back[1]) <= QUARTER
    # Near the lock the sine of the pitch has lost half the digits, and below 1e-6 of it the lock itself is given.
    assert apart(quaternion_of(*back), theirs(angles)) < (3e-6 if angles in NEARLY_LOCKED else 1e-9)


def test_random_orientations_are_scipys_and_come_back() -> None:
    for angles in RANDOM:
        quaternion = quaternion_of(*angles)
        assert apart(quaternion, theirs(angles)) < 1e-14
        np.testing.assert_allclose(euler_of(quaternion), angles, atol=1e-9)


def test_random_quaternions_have_scipys_angles() -> None:
    for rotation in Rotation.random(2000, random_state=12):
        np.testing.assert_allclose(euler_of(rotation.as_quat()), rotation.as_euler("xyz"), atol=1e-9)


@pytest.mark.parametrize("angles", LOCKED)
def test_where_roll_and_yaw_are_one_turn_it_is_the_yaw(angles: tuple[float, float, float]) -> None:
    rx, ry, rz = euler_of(quaternion_of(*angles))
    roll, pitch, yaw = angles
    assert (rx, ry) == (0.0, pitch)
    together = yaw - roll if pitch > 0 else yaw + roll
    assert math.remainder(rz - together, 2 * TURN) == pytest.approx(0.0, abs=1e-7)


def test_a_quaternion_and_its_negative_are_one_rotation() -> None:
    for angles in RANDOM[:100]:
        quaternion = quaternion_of(*angles)
        negative = tuple(-value for value in quaternion)
        np.testing.assert_allclose(euler_of(negative), euler_of(quaternion), atol=1e-12)


def test_what_has_no_direction_is_refused() -> None:
    assert normalised((0.0, 0.0, 0.0, 2.0)) == (0.0, 0.0, 0.0, 1.0)
    assert normalised((3.0, 0.0, -4.0, 0.0)) == pytest.approx((0.6, 0.0, -0.8, 0.0))
    assert normalised((0.0, 0.1, 0.0, 0.0)) == (0.0, 1.0, 0.0, 0.0)
    for length, word in ((0.0999, "0.0999"), (0.0, "0"), (math.inf, "inf"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"^a quaternion of length {word} is no rotation$"):
            normalised((0.0, 0.0, length, 0.0))


@pytest.mark.parametrize("angles", SPECIAL)
def test_a_rotation_vector_is_the_same_turn_and_is_added_to_what_is_there(angles: tuple[float, float, float]) -> None:
    pose = dict(zip(("qx", "qy", "qz", "qw"), quaternion_of(*angles), strict=True))
    found = with_rotation_vector({"x": 1.0, **pose})
    assert {name: found.pop(name) for name in ("x", *pose)} == {"x": 1.0, **pose}
    assert list(found) == ["ax", "ay", "az"]
    assert apart(tuple(pose.values()), Rotation.from_rotvec(list(found.values()))) < 1e-7


def test_without_a_quaternion_there_is_no_rotation_vector_and_a_joint_of_its_name_stays() -> None:
    assert with_rotation_vector({"qx": 1.0, "lift": 0.2}) == {"qx": 1.0, "lift": 0.2}
    turned = {"qx": 0.0, "qy": 0.0, "qz": 1.0, "qw": 0.0, "ax": 0.5}
    assert with_rotation_vector(turned) == {**turned, "ay": 0.0, "az": math.pi}
