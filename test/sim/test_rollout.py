"""Closed loop in one process: real simulation, real control step, Meta-World's expert in the place of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.rollout import roll_out
from flashvla_ros.sim.tasks import Task, find_task, task_for_instruction

try:
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

OPEN, CLOSE = find_task("drawer-open"), find_task("drawer-close")
OFF = Settings().with_values({"gate.mode": "off"})


def expert_policy(world: World, start: Task = OPEN) -> ScriptedPolicy:
    """Answers with the scripted expert's action for the instruction it is given, in metres."""

    def answer(request: Request, _: Inference) -> Inference:
        normalized = world.expert(task_for_instruction(start, request.observation.instruction).name)[None]
        kept = np.arange(round(request.pruning.keep_ratio * 64))
        return Inference(normalized * [0.01, 0.01, 0.01, 1.0], normalized, np.zeros(4, dtype=np.int64), kept, 64)

    return ScriptedPolicy(answer=answer)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World(image_size=32, supersample=1)
    yield world
    world.close()


def plan(**values: object) -> EpisodePlan:
    return dataclasses.replace(EpisodePlan(OPEN, 3, OPEN.instruction, 200), **values)  # type: ignore[arg-type]


def test_a_policy_is_told_where_the_robot_is(world: World) -> None:
    seen = []
    settings = OFF.with_values({"model.proprio": ("x", "qw", "right_j0")})
    policy = expert_policy(world)
    roll_out(world, Stepper(policy, SPEC), plan(max_steps=5), settings, lambda r: seen.append(r.observation.positions))
    assert len(seen) == 5
    assert {"x", "y", "z", "rx", "qw", "right_j0"} <= seen[0].keys()
    world.reset(OPEN.name, 3)
    hand = world.scene.hand_pose
    assert [seen[0][name] for name in ("x", "y", "z", "qw")] == [*hand.position, hand.orientation[3]]
    assert seen[0]["right_j0"] == world.scene.joint_positions["right_j0"]
    assert seen[-1]["x"] != seen[0]["x"]


def test_expert_succeeds_through_the_control_step(world: World) -> None:
    outcome = roll_out(world, Stepper(expert_policy(world), SPEC), plan(), OFF)
    assert outcome.success
    assert outcome.reused == 0
    assert outcome.kept_ratio == OFF.pruning.keep_ratio
    assert outcome.reasons == {"mode_off": outcome.steps}
    assert len(outcome.latencies_s) == outcome.steps


def test_the_same_plan_gives_the_same_episode(world: World) -> None:
    def play() -> tuple[int, int, list[list[float]]]:
        commands: list[list[float]] = []
        stepper = Stepper(expert_policy(world), SPEC)
        outcome = roll_out(world, stepper, plan(), Settings(), lambda result: commands.append(result.command.tolist()))
        return outcome.steps, outcome.reused, commands

    first, second = play(), play()
    assert first == second
    assert first[1] > 0


def test_instruction_changes_on_the_way_and_nothing_is_reused_across(world: World) -> None:
    steps: list[StepResult] = []
    switched = plan(switch_instruction=CLOSE.instruction, switch_step=70)
    outcome = roll_out(world, Stepper(expert_policy(world), SPEC), switched, Settings(), steps.append)
    assert outcome.success
    assert outcome.steps > 70
    assert [step.observation.instruction for step in steps[69:71]] == [OPEN.instruction, CLOSE.instruction]
    assert steps[70].fresh
    assert world.success(CLOSE.name)


def test_episode_without_success_ends_at_its_limit(world: World) -> None:
    outcome = roll_out(world, Stepper(expert_policy(world), SPEC), plan(max_steps=5), OFF)
    assert (outcome.success, outcome.steps) == (False, 5)
