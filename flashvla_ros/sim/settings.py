"""Parameters of the simulated robot: rows of the same form as the policy node's. Nothing here imports MuJoCo."""

from __future__ import annotations

import dataclasses

from flashvla_ros.core.errors import SettingsError, SimulationError
from flashvla_ros.core.parameter import Parameter, row, rows_of
from flashvla_ros.sim.libero.protocol import STEP_S, is_libero
from flashvla_ros.sim.tasks import check_name

ACTION_SIZE = 4  # dx, dy, dz, gripper
CAMERA = "image"  # its only one, where nobody names it
METRES_PER_UNIT = 0.01  # Meta-World moves the hand's set point by this much for an action of 1
SIZE_LIMITS = (16, 1024)  # side of an image in pixels


def _task_name(parameter: str, value: str) -> None:
    try:
        check_name(value)
    except SimulationError as error:
        raise SettingsError(f"{parameter}: {error}") from error


@dataclasses.dataclass(frozen=True)
class RobotSettings:
    """Parameters of the robot node, all fixed at start. Training draws its seeds from 10⁹ on, so no scene is shared."""

    task: str = row(
        "drawer-open", "Task of the episodes; LIBERO's are suite/number, libero_object/3.", validator=_task_name
    )
    instruction: str = row("", "Instruction in other words; empty: the task's own.")
    seed: int = row(0, "Seed of the first episode's scene; each further episode takes the next.", low=0, high=9 * 10**8)
    episodes: int = row(0, "Number of episodes; 0: until the node is stopped.", low=0, high=10**6)
    max_steps: int = row(0, "Control steps after which an episode has failed; 0: the task's own.", low=0, high=10**5)
    switch_instruction: str = row("", "Instruction that replaces the first one in the middle of each episode.")
    switch_step: int = row(85, "Control step at which switch_instruction comes.", low=1, high=10**5)
    rate_hz: float = row(10.0, "Control steps in a second.", unit="Hz", low=0.1, high=200.0)
    lock_step: bool = row(
        False, "Wait for the command that answers each image and publish /clock: runs repeat exactly."
    )
    image_size: int = row(108, "Side of the images.", unit="px", low=SIZE_LIMITS[0], high=SIZE_LIMITS[1])
    camera: str = row("", "Camera name; images go to <camera>/image, and to image where it is empty.")
    render: str = row(
        "official",
        "LIBERO's images; official: those of OpenVLA's evaluation; fast: for a policy that was trained with them.",
        choices=("official", "fast"),
    )
    cameras: int = row(
        1, "One more is at the hand; of 2 the topics are agentview/image and robot0_eye_in_hand/image.", low=1, high=2
    )
    command_timeout_s: float = row(
        0.5, "Age of the last command after which the robot stands still.", unit="s", low=0.01, high=60.0
    )
    start_timeout_s: float = row(
        600.0, "Longest wait for the policy's very first command, while it loads.", unit="s", low=0.1, high=3600.0
    )
    answer_timeout_s: float = row(
        30.0, "Silence of the policy afterwards that ends an episode with an error.", unit="s", low=0.1, high=3600.0
    )
    policy: str = row("flashvla", "Name of the policy node, whose reset service is called before each episode.")

    def __post_init__(self) -> None:
        if is_libero(self.task) and self.rate_hz * STEP_S != 1.0:  # a command [1/s] becomes an action by this time
            raise SettingsError(
                f"rate_hz must be {1 / STEP_S:g} for {self.task}, as in config/libero.yaml, got {self.rate_hz:g}"
            )


ROBOT_PARAMETERS: tuple[Parameter, ...] = tuple(rows_of(RobotSettings))
