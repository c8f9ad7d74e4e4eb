"""What the simulated robot can be asked to do: one row per task of Meta-World's, and LIBERO's by suite and number.

Tasks of one scene share one MuJoCo model, so that nothing but the instruction tells them apart. Nothing here imports
MuJoCo: command lines list the tasks without paying for it.
"""

from __future__ import annotations

import dataclasses

from flashvla_ros.core.errors import SimulationError, unknown_name
from flashvla_ros.sim.libero.library import task_files
from flashvla_ros.sim.libero.protocol import base_suite, is_libero, split_task

HOLD_STEPS = 5  # success must last this long; Meta-World counts a single step


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table; tasks of the same scene share one MuJoCo model."""

    name: str  # Meta-World's, without its version
    instruction: str
    scene: str
    max_steps: int = 250  # control steps after which the episode has failed
    hold_steps: int = HOLD_STEPS  # that success must last

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


def check_name(name: str) -> None:
    """Refuse a name that no task can have, without LIBERO: :class:`SimulationError` with those close to it."""
    if is_libero(name):
        split_task(name)
    elif name not in TASKS:
        raise SimulationError(unknown_name("task", name, TASKS))


def find_task(name: str) -> Task:
    """Return the row of a task, or raise :class:`SimulationError` with the names that are close to it.

    A task of LIBERO, such as ``libero_object/3``, is alone in its scene and done at the first success.
    """
    if is_libero(name):
        name = "{}/{}".format(*split_task(name))  # one name a task: 03 is 3
        return Task(name, task_files(name).instruction, name, base_suite(name).max_steps, hold_steps=1)
    check_name(name)
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
