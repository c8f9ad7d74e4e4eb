"""What counts as a deviation, and for how long it must last."""

from __future__ import annotations

import math

import numpy as np

from flashvla_ros.control.deviation import DeviationWatch
from flashvla_ros.core.settings import ControlSettings
from flashvla_ros.core.types import ActionKind, ActionSpec

ABSOLUTE = ActionKind.ABSOLUTE
POSE = ActionSpec(("x", "y", "z", "rx", "ry", "rz"), (ABSOLUTE,) * 6, 0.1)
CONTROL = ControlSettings(max_deviation=(0.1, 0.0, 0.0, 0.2, 0.0, 0.0), deviation_time_s=0.5)
HOME = np.array([0.5, 0.0, 0.3, 3.1, 0.0, 0.0])


def at(**positions: float) -> dict[str, float]:
    return {"x": 0.5, "rx": 3.1, **positions}


def test_a_deviation_must_last_and_starts_anew_after_the_robot_has_come_back() -> None:
    watch = DeviationWatch(POSE)
    assert watch.look(0.0, HOME, at(x=0.7), CONTROL) == ""
    assert watch.look(0.4, HOME, at(x=0.7), CONTROL) == ""
    assert watch.look(0.45, HOME, at(x=0.55), CONTROL) == ""
    assert watch.look(0.5, HOME, at(x=0.7), CONTROL) == ""
    assert watch.look(0.9, HOME, at(x=0.7), CONTROL) == ""
    words = watch.look(1.1, HOME, at(x=0.7), CONTROL)
    assert words == "x is at 0.7 and was commanded to 0.5 (control.max_deviation is 0.1) for 0.60 s"


def test_another_thread_that_looks_meanwhile_disturbs_nothing() -> None:
    """The watchdog looks from three threads: its own, the executor's and, before a command, the worker's."""
    watch = DeviationWatch(POSE)

    class Disturbed:
        max_deviation = CONTROL.max_deviation

        @property
        def deviation_time_s(self) -> float:
            assert watch.look(1.0, None, {}, CONTROL) == ""
            return 0.0

    assert "x is at 0.7" in watch.look(1.0, HOME, at(x=0.7), Disturbed())  # type: ignore[arg-type]


def test_dimensions_with_0_are_not_watched_and_angles_go_round() -> None:
    watch = DeviationWatch(POSE)
    for now_s in (0.0, 1.0):
        assert watch.look(now_s, HOME, at(y=9.0, rx=3.1 - 2 * math.pi), CONTROL) == ""
        assert watch.look(now_s, HOME, at(rx=-3.1), CONTROL) == ""  # 0.08 rad away
    assert watch.look(2.0, HOME, at(rx=2.8), CONTROL) == ""
    assert "rx is at 2.8" in watch.look(2.6, HOME, at(rx=2.8), CONTROL)


def test_what_is_not_measured_counts_and_what_is_not_commanded_does_not() -> None:
    watch = DeviationWatch(POSE)
    assert watch.look(0.0, HOME, {}, CONTROL) == ""
    assert watch.look(0.3, None, {}, CONTROL) == ""  # stopped meanwhile
    assert watch.look(0.6, HOME, {}, CONTROL) == ""
    assert watch.look(1.2, HOME, {}, CONTROL).count("is not reported by joint_states or end_effector_pose") == 2


def test_a_quaternion_and_its_negative_are_the_same_place_and_other_values_are_not() -> None:
    names = ("x", "qx", "qy", "qz", "qw")
    spec = ActionSpec(names, (ABSOLUTE,) * 5, 0.1)
    control = ControlSettings(max_deviation=(0.1,) * 5, deviation_time_s=0.0)
    command = np.array([0.5, 0.6, 0.0, 0.0, 0.8])

    def wrong(x: float, qx: float, qw: float) -> str:
        return DeviationWatch(spec).look(0.0, command, {"x": x, "qx": qx, "qy": 0.0, "qz": 0.0, "qw": qw}, control)

    assert wrong(0.5, 0.6, 0.8) == wrong(0.5, -0.6, -0.8) == ""
    assert wrong(0.5, -0.62, 0.78) == ""
    assert wrong(0.5, 0.0, 0.8).startswith("qx is at 0 and was commanded to 0.6")
    assert wrong(-0.5, 0.6, 0.8).startswith("x is at -0.5 and was commanded to 0.5")
