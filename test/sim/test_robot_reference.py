"""docs/interface.md and docs/evaluation.md say of the simulated robot what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvla_ros.core.parameter import Parameter
from flashvla_ros.sim.settings import ROBOT_PARAMETERS
from flashvla_ros.sim.tasks import TASKS, Task

DOCS = Path(__file__).parents[2] / "docs"
INTERFACE = (DOCS / "interface.md").read_text(encoding="utf-8").splitlines()
EVALUATION = (DOCS / "evaluation.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("row", ROBOT_PARAMETERS, ids=lambda row: row.name)
def test_every_parameter_of_the_robot_is_documented(row: Parameter) -> None:
    line = next(line for line in INTERFACE if line.startswith(f"| `{row.name}` | {row.kind} |"))
    assert f"`{json.dumps(row.default)}`" in line
    assert row.description in line
    assert row.choices or row.rule in line


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_is_documented(task: Task) -> None:
    assert any(line.startswith(f"| `{task.name}` | {task.instruction} | {task.scene} |") for line in EVALUATION)
