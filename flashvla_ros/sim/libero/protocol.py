"""What OpenVLA's evaluation on LIBERO fixes: suites, steps, waiting, the gripper's sign, the key of the statistics.

From ``experiments/robot/libero`` of github.com/openvla/openvla at commit c8f03f4. Nothing here needs LIBERO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from flashvla_ros.core.errors import CheckpointError, SimulationError, unknown_name
from flashvla_ros.core.types import FloatArray

SIDE = 224  # of the picture that the model sees, in pixels
FIRST_DRAWN = 10**9  # seeds from here on draw the scene as LIBERO's own reset does; training takes these
WAITING_STEPS = 10  # in which objects come to rest, not counted
CAMERAS = ("agentview", "robot0_eye_in_hand")  # that checkpoints of one and of two images see
STEP_S = 0.05  # of the arm's controller
CONTROLS = 7  # x, y, z, rx, ry, rz as offsets of the goal, and the gripper
# What an action of 1 asks of the controller. The hand gets there only in part: 0.4 to 1.2 cm a step, 0.03 to 0.07 rad.
METRES_PER_UNIT, RADIANS_PER_UNIT = 0.05, 0.5
PERMUTED = "_permuted"  # this package's own suffix: objects swap their places


@dataclasses.dataclass(frozen=True)
class Suite:
    """One row of LIBERO's suites."""

    name: str
    tasks: int  # how many there are
    max_steps: int  # control steps after which an episode has failed


SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("libero_spatial", 10, 220),
        Suite("libero_object", 10, 280),
        Suite("libero_goal", 10, 300),
        Suite("libero_10", 10, 520),
        Suite("libero_90", 90, 400),
    )
}


def check_images(count: int) -> None:
    """Refuse, with :class:`CheckpointError`, a checkpoint that sees more images than a simulated robot has cameras."""
    if count > len(CAMERAS):
        raise CheckpointError(
            f"the checkpoint sees {count} cameras (num_images_in_input), and a simulated robot has {len(CAMERAS)}"
        )


def base_suite(name: str) -> Suite:
    """Return the suite that a suite's or a task's name is of, or is a variation of: ``libero_object_swap``.

    Raises:
        SimulationError: It is neither.
    """
    name = name.partition("/")[0]
    for suite in SUITES.values():
        if name == suite.name or name.startswith(f"{suite.name}_"):
            return suite
    raise SimulationError(unknown_name("suite", name, SUITES))


def is_libero(task: str) -> bool:
    """Say whether a task's name has the form of LIBERO's, ``suite/number``."""
    return "/" in task


def split_task(task: str) -> tuple[str, int]:
    """Return the suite and the number of a task such as ``libero_object/3``.

    Raises:
        SimulationError: There is no such suite, or no such number in it.
    """
    name, _, number = task.partition("/")
    suite = base_suite(name)
    if not number.isdecimal() or int(number) >= suite.tasks:
        raise SimulationError(f"{name} has tasks {name}/0 to {name}/{suite.tasks - 1}, got {task!r}")
    return name, int(number)


def render_for(size: int) -> str:
    """Return how images are made for a checkpoint that sees `size` pixels a side: official ones have 224."""
    return "official" if size == SIDE else "fast"


def statistics_key(suite: str, known: Collection[str]) -> str:
    """Return the data set of a checkpoint's norm_stats that goes with a suite, as the official evaluation chooses it.

    Raises:
        CheckpointError: The checkpoint has none.
    """
    base = base_suite(suite).name
    for key in (base, f"{base}_no_noops"):
        if key in known:
            return key
    raise CheckpointError(
        f"the checkpoint has no statistics of {base} (norm_stats: {', '.join(sorted(known)) or 'none'}): use one that "
        f"was trained on {base}, or name a data set with --set model.unnorm_key=…"
    )


def arm_action(action: FloatArray) -> FloatArray:
    """Return what the arm's controller takes of an action [7] whose gripper is open at -1 and closed at 1.

    The gripper has two states: the official code takes the sign, so that half open does nothing. The six others go as
    they are; the controller clips them to ±1.
    """
    return np.append(action[:-1], np.sign(action[-1]))
