"""The checkpoint that the package ships: official layout, small, and it does what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import SPEC

from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.evaluation.modes import BUILT_IN
from flashvla_ros.sim.perturbation import INSTRUCTION_SWITCH, plan_episode
from flashvla_ros.sim.rollout import roll_out
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.arch.table import load
from flashvla_ros.vla.checkpoint import load_config
from flashvla_ros.vla.shapes import DINOV2, SIGLIP
from training.architecture import DATASET, action_statistics

try:
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

FOLDER = share_path("models", "demo")
OFT = Path(__file__).parents[2] / "models" / "demo-oft"
SEED = 7


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(device="cpu"))


def test_folder_is_small_and_has_openvlas_parts() -> None:
    config = load_config(FOLDER)
    assert [tower.model_type for tower in config.towers] == [DINOV2, SIGLIP]
    assert config.norm_stats == {DATASET: action_statistics()}
    assert config.visual_tokens >= 144
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 25e6


@pytest.mark.parametrize("task", TASKS)
def test_robot_does_what_it_is_told(world: World, policy: OpenVLAPolicy, task: str) -> None:
    outcome = roll_out(world, Stepper(policy, SPEC), plan_episode(task, SEED), Settings())
    assert outcome.success
    assert outcome.kept_ratio == pytest.approx(Settings().pruning.keep_ratio)


@pytest.mark.parametrize("mode", ["dense", "guarded"])
def test_robot_does_the_same_with_every_token_and_with_the_gate(world: World, policy: OpenVLAPolicy, mode: str) -> None:
    settings = Settings().with_values(BUILT_IN[mode])
    outcome = roll_out(world, Stepper(policy, SPEC), plan_episode("drawer-open", SEED), settings)
    assert outcome.success
    assert (outcome.reused > 0) == (mode == "guarded")


def test_chunks_of_eight_open_the_drawer(world: World) -> None:
    assert sum(path.stat().st_size for path in OFT.iterdir()) <= 25e6
    policy = load(ModelSettings(checkpoint=str(OFT), device="cpu"))
    assert policy.chunk_size == 8
    settings = Settings().with_values(BUILT_IN["dense"])
    outcome = roll_out(world, Stepper(policy, SPEC), plan_episode("drawer-open", SEED), settings)
    assert outcome.success
    assert outcome.reasons["open_loop"] > 6 * outcome.reasons["mode_off"]


def test_new_instruction_on_the_way_is_followed(world: World, policy: OpenVLAPolicy) -> None:
    outcome = roll_out(world, Stepper(policy, SPEC), plan_episode("drawer-close", SEED, INSTRUCTION_SWITCH), Settings())
    assert outcome.success
    assert outcome.reasons["new_instruction"] == 1
