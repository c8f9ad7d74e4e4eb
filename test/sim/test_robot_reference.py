"""docs/ros2.md and docs/evaluation.md say of the simulated robot what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvla_ros.core.parameter import Parameter
from flashvla_ros.sim.settings import ROBOT_PARAMETERS
from flashvla_ros.sim.tasks import TASKS, Task

DOCS = Path(__file__).parents[2] / "docs"
ROS2 = (DOCS / "ros2.md").read_text(encoding="utf-8").splitlines()
EVALUATION = (DOCS / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROBOT_PARAMETERS, ids=lambda row: row.name)
def test_every_parameter_of_the_robot_is_documented(row: Parameter) -> None:
    assert f"| `{row.name}` | `{json.dumps(row.default)}` | {row.description} |" in ROS2


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_is_documented(task: Task) -> None:
    assert f"`{task.name}` (*{task.instruction}*)" in EVALUATION
