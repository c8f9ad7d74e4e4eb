"""The task table."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.sim.tasks import TASKS, find_task, scene_tasks, task_for_instruction


def test_instructions_tell_tasks_of_a_scene_apart() -> None:
    for task in TASKS.values():
        instructions = [row.instruction for row in scene_tasks(task.scene)]
        assert len(set(instructions)) == len(instructions)


def test_an_unknown_task_names_those_that_are_close() -> None:
    with pytest.raises(SimulationError, match=r"'drawer-opne'.*drawer-open"):
        find_task("drawer-opne")


def test_an_instruction_is_judged_by_the_task_that_it_names() -> None:
    start = find_task("drawer-open")
    assert task_for_instruction(start, "close the drawer").name == "drawer-close"
    assert task_for_instruction(start, "please pull out the drawer").name == "drawer-open"
    assert task_for_instruction(start, "close the window").name == "drawer-open"


def test_the_table_costs_no_simulator() -> None:
    heavy = ("mujoco", "metaworld", "cv2", "torch")
    code = f"import sys, flashvla_ros.sim.settings; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
