"""What the simulated robot can be asked to do: one row per task, Meta-World's names, plain instructions.

Tasks of one scene share one MuJoCo model, so that nothing but the instruction tells them apart. Nothing here imports
MuJoCo: command lines list the tasks without paying for it.
"""

from __future__ import annotations

import dataclasses

from flashvla_ros.core.errors import SimulationError, unknown_name


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        name: Meta-World's name without its version.
        instruction: What the policy is told.
        scene: Tasks with the same scene share one MuJoCo model.
        max_steps: Control steps after which the episode has failed.
    """

    name: str
    instruction: str
    scene: str
    max_steps: int = 250

    @property
    def environment(self) -> str:
        """Key of Meta-World's tables of environments and of scripted experts."""
        return f"{self.name}-v3"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("drawer-open", "open the drawer", "drawer"),
        Task("drawer-close", "close the drawer", "drawer"),
        Task("window-open", "open the window", "window"),
        Task("window-close", "close the window", "window"),
        Task("button-press", "press the button", "button"),
        Task("door-open", "open the door", "door"),
    )
}


def find_task(name: str) -> Task:
    """Return the row of a task, or raise :class:`SimulationError` with the names that are close to it."""
    if name not in TASKS:
        raise SimulationError(unknown_name("task", name, TASKS))
    return TASKS[name]


def scene_tasks(scene: str) -> tuple[Task, ...]:
    """Return the tasks that share a scene, in the order of the table."""
    return tuple(task for task in TASKS.values() if task.scene == scene)


def task_for_instruction(start: Task, instruction: str) -> Task:
    """Return the task that judges an instruction given in the scene of `start`.

    An instruction in words of its own ("please open the drawer") is judged as the task the episode started with.
    """
    for task in scene_tasks(start.scene):
        if task.instruction == instruction:
            return task
    return start
