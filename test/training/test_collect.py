"""Demonstrations: reproducible, resumable, and labelled with what the expert would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from flashvla_ros.core.errors import SimulationError

try:
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

from training.collect import FIRST_SEED, Plan, Recording, main, plan_episode, record_episode
from training.dataset import DatasetError, episode_path, load

INSTRUCTIONS = ["open the drawer", "close the drawer"]


@pytest.fixture(scope="module")
def world() -> World:
    return World(image_size=16)


def plain(task: str, **changes: object) -> Plan:
    plan = Plan(task, "plain", FIRST_SEED, task, task, switch_step=0, progress=0.0, noise=0.0, memory=0.0)
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def test_an_episode_repeats_and_ends_in_success(world: World) -> None:
    plan = plain("drawer-close", noise=0.2, memory=0.8)
    first, second = (record_episode(world, plan, INSTRUCTIONS) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["done"][-1]
    assert not first["done"][0]
    assert first["images"].shape[1:] == (16, 16, 3)
    assert first["auxiliary"].shape[1] == 7
    assert np.abs(first["actions"]).max() <= 1.0


def test_labels_are_clean_where_the_executed_motion_is_not(world: World) -> None:
    noisy = record_episode(world, plain("drawer-close", noise=0.5), INSTRUCTIONS)
    clean = record_episode(world, plain("drawer-close"), INSTRUCTIONS)
    np.testing.assert_array_equal(noisy["actions"][0], clean["actions"][0])  # same state, same label
    assert np.abs(noisy["auxiliary"][1:5, :3] - clean["auxiliary"][1:5, :3]).max() > 1e-3
    assert set(noisy["actions"][:, 3]) == {1.0}


def test_a_switched_episode_is_labelled_with_the_instruction_in_force(world: World) -> None:
    plan = plain("drawer-open", kind="switch", first="drawer-close", start="drawer-close", switch_step=30)
    arrays = record_episode(world, plan, INSTRUCTIONS)
    assert arrays["instruction"][:30].tolist() == [1] * 30
    assert set(arrays["instruction"][30:]) == {0}
    assert set(arrays["actions"][:30, 3]) == {1.0}
    assert set(arrays["actions"][30:, 3]) == {-1.0}


def test_a_chunk_is_what_the_expert_would_do_undisturbed_and_asking_changes_nothing(world: World) -> None:
    clean = record_episode(world, plain("drawer-close"), INSTRUCTIONS)
    chunks = record_episode(world, plain("drawer-close"), INSTRUCTIONS, Recording(chunk=4, every=3))
    assert chunks["actions"].shape[1:] == (4, 4)
    np.testing.assert_array_equal(chunks["images"][:-1], clean["images"][:-1:3])
    np.testing.assert_allclose(chunks["actions"][2], clean["actions"][6:10], atol=1e-6)
    assert chunks["done"][-1]


def test_plans_mix_the_kinds_and_never_share_a_scene_with_an_evaluation() -> None:
    plans = [plan_episode("drawer-open", number, seed=0) for number in range(200)]
    assert {plan.kind for plan in plans} == {"plain", "between", "switch"}
    assert len({plan.seed for plan in plans}) == 200
    assert min(plan.seed for plan in plans) >= FIRST_SEED
    assert plans == [plan_episode("drawer-open", number, seed=0) for number in range(200)]
    assert plans[:9] != [plan_episode("drawer-open", number, seed=1) for number in range(9)]
    assert {plan_episode("button-press", number, seed=0).kind for number in range(20)} == {"plain"}


def test_collection_is_resumed_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["--tasks", "drawer-open", "drawer-close"]
    command = [*tasks, "--episodes", "1", "--image-size", "16", "--workers", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    frames, meta = load(tmp_path)
    assert meta["instructions"] == INSTRUCTIONS
    assert len(frames) == len(frames.actions) == len(frames.episode) > 30
    kept, lost = episode_path(tmp_path, "drawer-open", 0), episode_path(tmp_path, "drawer-close", 0)
    written = kept.stat().st_mtime_ns
    lost.unlink()
    assert main(command) == 0
    assert kept.stat().st_mtime_ns == written
    assert np.array_equal(load(tmp_path)[0].images, frames.images)

    assert main([*command, "--seed", "1"]) == 2
    assert "was made with seed=0" in capsys.readouterr().err
    assert main([*command, "--tasks", "drawer-open"]) == 2
    assert "drawer-open shares its scene with drawer-close" in capsys.readouterr().err


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a data set"):
        load(tmp_path)
    (tmp_path / "meta.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match="holds no episode"):
        load(tmp_path)
