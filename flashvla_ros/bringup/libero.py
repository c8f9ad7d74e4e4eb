"""LIBERO's robot in a bringup: what a checkpoint says of the images that it wants, and of its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.paths import user_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.sim.libero.protocol import CAMERAS, check_images, is_libero, render_for, statistics_key
from flashvla_ros.sim.tasks import find_task

ROBOTS = ("demo", "libero")


class LiberoParameters(NamedTuple):
    """Parameters of the policy node and of the robot node beside those of ``config/libero.yaml``."""

    policy: Mapping[str, Value]
    robot: Mapping[str, Value]


def check_robot(robot: str, task: str) -> bool:
    """Say whether the robot is LIBERO's.

    Raises:
        SettingsError: There is no such robot, or the task is another one's.
    """
    if robot not in ROBOTS:
        raise SettingsError(f"robot must be one of {', '.join(ROBOTS)}, got {robot!r}")
    if is_libero(task) != (robot == "libero"):
        example = "drawer-open" if robot == "demo" else "libero_object/0"
        raise SettingsError(f"the robot {robot} does tasks such as {example}, got {task!r}: give another task or robot")
    return robot == "libero"


def libero_parameters(task: str, given: Mapping[str, Value]) -> LiberoParameters:
    """Return what a task and a checkpoint ask of the two nodes, but for the policy node's `given` parameters.

    Raises:
        FlashVLAError: LIBERO is not installed, or the checkpoint is none, or none of this suite.
    """
    from flashvla_ros.vla.arch.base import read_config  # brings torch, which no other bringup needs
    from flashvla_ros.vla.arch.oft.policy import PRESETS, Preset

    find_task(task)
    model = Settings().with_values({name: value for name, value in given.items() if name.startswith("model.")}).model
    if not model.checkpoint:
        raise CheckpointError("the demo policy does not know LIBERO: give a checkpoint that was trained on its suite")
    config = read_config(user_path(model.checkpoint), model, PRESETS.get(model.preset, Preset()).images)
    size, images = config.towers[0].image_size, config.num_images_in_input
    check_images(images)
    render = render_for(size)
    policy: dict[str, Value] = {"model.center_crop": 1.0} if render == "fast" else {}
    policy |= {"camera.names": CAMERAS} if images > 1 else {}
    policy |= {"model.proprio": tuple(config.oft["proprio"])} if config.oft.get("proprio") else {}
    if "model.unnorm_key" not in given:
        policy["model.unnorm_key"] = statistics_key(task, config.norm_stats)
    own = {name: value for name, value in policy.items() if name not in given}
    return LiberoParameters(own, {"render": render, "image_size": size})
