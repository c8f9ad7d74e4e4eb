"""Episodes: when they end, what judges them, and what a command does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashvla_ros.core.errors import SimulationError

try:
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

from flashvla_ros.sim.episode import Episode, EpisodePlan, action_from_command
from flashvla_ros.sim.settings import RobotSettings
from flashvla_ros.sim.tasks import HOLD_STEPS

STILL = np.array([0.0, 0.0, 0.0, -1.0])


@pytest.fixture(scope="module")
def world() -> World:
    return World(image_size=32)


def start(world: World, episode: int = 0, **settings: object) -> Episode:
    return Episode(world, EpisodePlan.from_settings(RobotSettings(**settings), episode))  # type: ignore[arg-type]


def test_the_expert_ends_an_episode_with_success(world: World) -> None:
    episode = start(world, task="drawer-close")
    while not episode.ended:
        episode.step(world.expert(episode.judge.name))
    assert episode.success
    assert HOLD_STEPS < episode.steps < episode.plan.max_steps


def test_doing_nothing_fails_after_max_steps(world: World) -> None:
    episode = start(world, max_steps=7)
    while not episode.ended:
        episode.step(STILL)
    assert (episode.steps, episode.success) == (7, False)


def test_success_must_last(world: World) -> None:
    episode = start(world, task="drawer-open", instruction="close the drawer")  # accomplished from the start
    for _ in range(HOLD_STEPS - 1):
        episode.step(STILL)
    assert not episode.success
    assert not episode.ended
    episode.step(STILL)
    assert episode.success
    assert episode.ended


def test_a_new_instruction_takes_over_and_has_all_its_steps(world: World) -> None:
    episode = start(world, switch_instruction="close the drawer", switch_step=85, max_steps=120)
    changes = []
    while not episode.ended:
        if episode.step(world.expert(episode.judge.name)):
            changes.append(episode.steps)
            assert not world.success("drawer-close")  # it was on its way to being opened
    assert changes == [85]
    assert episode.instruction == "close the drawer"
    assert episode.judge.name == "drawer-close"
    assert episode.success


def test_success_before_a_new_instruction_does_not_end_the_episode(world: World) -> None:
    episode = start(world, instruction="close the drawer", switch_instruction="open the drawer", switch_step=12)
    for _ in range(11):
        episode.step(STILL)
    assert episode.success
    assert not episode.ended
    episode.step(STILL)
    assert not episode.success
    assert not episode.ended


def test_episodes_count_their_seeds() -> None:
    plans = [EpisodePlan.from_settings(RobotSettings(seed=40), number) for number in range(3)]
    assert [plan.seed for plan in plans] == [40, 41, 42]
    assert plans[0].instruction == "open the drawer"


def test_an_episode_without_steps_is_refused(world: World) -> None:
    plan = EpisodePlan.from_settings(RobotSettings(), 0)
    with pytest.raises(SimulationError, match="at least one step"):
        Episode(world, EpisodePlan(plan.task, 0, plan.instruction, max_steps=0))


def test_a_velocity_becomes_the_motion_of_one_tick() -> None:
    np.testing.assert_allclose(action_from_command([0.05, -0.1, 0.02], -1.0, 0.1), [0.5, -1.0, 0.2, -1.0])
    np.testing.assert_allclose(action_from_command([0.05, -0.1, 0.02], 1.0, 0.05), [0.25, -0.5, 0.1, 1.0])


@given(st.lists(st.floats(), min_size=3, max_size=3), st.floats(), st.floats(0.005, 10.0))
def test_every_command_becomes_an_action_within_bounds(velocity: list[float], gripper: float, tick_s: float) -> None:
    action = action_from_command(velocity, gripper, tick_s)
    assert np.isfinite(action).all()
    assert np.abs(action).max() <= 1.0
    if not all(map(math.isfinite, velocity)):
        assert not action[:3].any()
