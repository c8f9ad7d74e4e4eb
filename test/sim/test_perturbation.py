"""Perturbations: drawn from the seed, visible when they say, undone afterwards, and never unfair."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from fakes import SPEC, ScriptedPolicy
from test_rollout import expert_policy

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.settings import Settings
from flashvla_ros.sim.perturbation import JUMP_M, PERTURBATIONS, plan_episode
from flashvla_ros.sim.rollout import Outcome, roll_out
from flashvla_ros.sim.tasks import TASKS

try:
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

OFF = Settings().with_values({"gate.mode": "off"})
SEED = 3


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World(image_size=32, supersample=1)
    yield world
    world.close()


def play(world: World, name: str, settings: Settings = OFF, steps: int = 65, **how: bool) -> tuple[Outcome, list]:
    """A policy that stands still: whatever moves in the picture is the perturbation."""
    results: list[StepResult] = []
    plan = dataclasses.replace(plan_episode("drawer-close", SEED, name), max_steps=steps)
    policy = ScriptedPolicy(actions=[(0.0, 0.0, 0.0, 1.0)])
    return roll_out(world, Stepper(policy, SPEC), plan, settings, results.append, **how), results


def differences(results: list[StepResult]) -> np.ndarray:
    images = np.stack([result.observation.images["image"] for result in results]).astype(np.int16)
    return np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_seed_draws_it_and_nothing_is_left_behind(world: World, name: str) -> None:
    first, second, plain = play(world, name)[1], play(world, name)[1], play(world, "none")[1]
    assert [step.observation.stamp_s for step in first] == [step.observation.stamp_s for step in second]
    assert not np.any([a != b for a, b in zip(*(_images(run) for run in (first, second)), strict=True)])
    world.reset("drawer-close", SEED)
    assert np.array_equal(world.render(), plain[0].observation.images["image"])


def _images(results: list[StepResult]) -> list[bytes]:
    return [result.observation.images["image"].tobytes() for result in results]


@pytest.mark.parametrize("name", ["object_jump", "lighting"])
def test_a_change_shows_first_in_the_image_that_it_names(world: World, name: str) -> None:
    outcome, results = play(world, name)
    assert outcome.change_step is not None
    changes = differences(results)
    assert int(changes.argmax()) + 1 == outcome.change_step
    assert changes.max() > 1.0
    assert outcome.reaction_steps == 0  # the gate is off


@pytest.mark.parametrize(("name", "least"), [("camera_noise", 2.0), ("camera_shake", 1.0)])
def test_a_disturbance_without_an_instant_is_in_every_image(world: World, name: str, least: float) -> None:
    outcome, results = play(world, name)
    assert (outcome.change_step, outcome.reaction_steps) == (None, None)
    assert differences(results)[20:].min() > least


def test_no_two_cameras_and_no_two_steps_have_the_same_noise() -> None:
    noise = PERTURBATIONS["camera_noise"](plan_episode("drawer-close", SEED, "camera_noise"))
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    images = [noise.image(grey, step, camera).tobytes() for step in (0, 1) for camera in (0, 1)]
    assert len(set(images)) == len(images)


def test_lost_images_get_no_answer_and_the_robot_goes_on(world: World) -> None:
    outcome, results = play(world, "frame_drops", steps=200)
    assert outcome.steps == 200
    assert 0.6 * 200 < len(results) == len(outcome.latencies_s) < 0.95 * 200
    gaps = np.diff([round(result.observation.stamp_s / 0.1) for result in results])
    assert gaps.max() > 2


def test_a_late_command_moves_the_robot_later(world: World) -> None:
    def heights(name: str) -> list[float]:
        plan = dataclasses.replace(plan_episode("drawer-close", SEED, name), max_steps=6)
        policy, hand = ScriptedPolicy(actions=[(0.0, 0.0, 1.0, 1.0)]), []
        roll_out(world, Stepper(policy, SPEC), plan, OFF, lambda _: hand.append(world.scene.state.hand[2]))
        return hand

    delay = PERTURBATIONS["latency"](plan_episode("drawer-close", SEED, "latency")).delay_steps
    punctual, late = heights("none"), heights("latency")
    assert delay in (1, 2)
    assert punctual[delay] - late[delay] > 1e-3
    assert late[-1] - late[delay] > 1e-3


def test_free_running_goes_on_while_the_model_thinks(world: World) -> None:
    clock = iter(0.25 * tick for tick in range(10_000))  # every look at the clock takes a quarter of a second
    plan = dataclasses.replace(plan_episode("drawer-close", SEED), max_steps=40)
    results: list[StepResult] = []
    stepper = Stepper(ScriptedPolicy(actions=[(0.0, 0.0, 0.0, 1.0)]), SPEC, clock=lambda: next(clock))
    outcome = roll_out(world, stepper, plan, OFF, results.append, free_running=True)
    stamps = np.array([result.observation.stamp_s for result in results])
    assert outcome.steps == 40
    assert np.diff(stamps).min() > 0.65  # three looks at the clock a step
    assert outcome.latencies_s[0] == pytest.approx(0.75)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_still_succeeds_after_a_jump(world: World, task: str) -> None:
    plan = plan_episode(task, 4, "object_jump")
    outcome = roll_out(world, Stepper(expert_policy(world, plan.task), SPEC), plan, OFF)
    assert outcome.change_step is not None
    assert outcome.success


def test_the_object_jumps_far_enough_and_its_joints_stay(world: World) -> None:
    world.reset("drawer-open", SEED)
    before, joints = world.scene.placement, world.scene.joint_positions
    low, high = world.scene.placement_range
    world.scene.place_object(high if np.linalg.norm(high - before) > JUMP_M else low)
    assert np.linalg.norm(world.scene.placement - before) >= JUMP_M
    assert world.scene.joint_positions == joints
    assert np.abs(world.scene.state.object - before)[0] > JUMP_M / 2


def test_only_a_scene_with_other_tasks_can_switch_its_instruction() -> None:
    switched = plan_episode("window-open", 4, "instruction_switch")
    assert (switched.instruction, switched.switch_instruction) == ("close the window", "open the window")
    assert switched == plan_episode("window-open", 4, "instruction_switch")
    with pytest.raises(SimulationError, match="alone in its scene"):
        plan_episode("door-open", 4, "instruction_switch")
    with pytest.raises(SimulationError, match="did you mean object_jump"):
        plan_episode("door-open", 4, "object_jmp")
