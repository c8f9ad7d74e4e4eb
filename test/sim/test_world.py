"""The simulated robot in real MuJoCo."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.sim.tasks import TASKS

try:
    from flashvla_ros.sim.scene import LEASH_M, Camera
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

STILL = (0.0, 0.0, 0.0, -1.0)


@pytest.fixture(scope="module")
def world() -> World:
    return World(image_size=64)


def rollout(world: World, task: str, seed: int, steps: int = 8) -> tuple[list[np.ndarray], np.ndarray]:
    world.reset(task, seed)
    images = []
    for _ in range(steps):
        world.step(world.expert(task))
        images.append(world.render())
    return images, world.scene.state.vector()


def solve(world: World, task: str, steps: int = 250) -> int:
    for step in range(steps):
        if world.success(task):
            return step
        world.step(world.expert(task))
    raise AssertionError(f"the expert did not manage {task} in {steps} steps")


def test_the_same_seed_gives_the_same_episode_whatever_came_before(world: World) -> None:
    images, state = rollout(world, "drawer-open", 5)
    rollout(world, "drawer-close", 6, steps=3)
    again, same = rollout(world, "drawer-open", 5)
    fresh, fresh_state = rollout(World(image_size=64), "drawer-open", 5)
    for other in (again, fresh):
        assert all(np.array_equal(a, b) for a, b in zip(images, other, strict=True))
    assert np.array_equal(state, same)
    assert np.array_equal(state, fresh_state)


def test_another_seed_puts_the_object_elsewhere(world: World) -> None:
    positions = []
    for seed in range(4):
        world.reset("drawer-open", seed)
        positions.append(world.scene.state.object)
    assert np.ptp([position[0] for position in positions]) > 0.02


@pytest.mark.parametrize("task", [row.name for row in TASKS.values() if row.scene != "drawer"])
def test_every_other_scene_starts_undone_and_is_solved_by_its_expert(task: str) -> None:
    world = World(image_size=16)
    world.reset(task, 0)
    first = world.render()
    assert not world.success(task)
    world.step(STILL)
    assert np.abs(world.render().astype(int) - first).mean() < 3  # the first image shows the start, not what was before
    assert solve(world, task) > 30


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("task", ["drawer-open", "drawer-close"])
def test_the_expert_solves_what_does_not_solve_itself(world: World, task: str, seed: int) -> None:
    world.reset(task, seed)
    for _ in range(5):
        world.step(STILL)
    assert not world.success(task)
    assert solve(world, task) > 30


def test_one_scene_serves_both_instructions_in_turn(world: World) -> None:
    world.reset("drawer-open", 3)
    assert world.success("drawer-close")  # it starts closed
    for task, other in (("drawer-open", "drawer-close"), ("drawer-close", "drawer-open")):
        solve(world, task)
        assert not world.success(other)


def test_progress_moves_the_object_between_the_starts_of_two_tasks(world: World) -> None:
    openings = []
    for task, progress in (("drawer-open", 0.0), ("drawer-open", 0.5), ("drawer-open", 1.0), ("drawer-close", 0.0)):
        world.reset(task, 2, progress)
        openings.append(-world.scene.state.object[1])
    assert openings[0] < openings[1] < openings[2]
    assert openings[2] == pytest.approx(openings[3], abs=1e-6)


def test_the_picture_shows_the_scene_the_right_way_up(world: World) -> None:
    world.reset("drawer-open", 0)
    image = world.render().astype(int)
    assert image.shape == (64, 64, 3)
    red, green, _ = np.moveaxis(image, 2, 0)
    arm = np.argwhere((red > 90) & (red > 3 * green))  # the arm is red and comes in from above
    drawer = np.argwhere((green > 90) & (green > red + 20))  # the drawer is green and stands on the table
    assert len(arm) > 50
    assert len(drawer) > 100
    assert arm[:, 0].mean() < drawer[:, 0].mean() - 10


def test_nothing_but_the_drawer_tells_the_tasks_apart(world: World) -> None:
    """Meta-World marks the goal with a ball; it would give the instruction away."""
    world.reset("drawer-open", 4, progress=0.5)
    opening = world.render()
    world.reset("drawer-close", 4, progress=1.0)
    world.reset("drawer-close", 4, progress=0.5)
    assert np.abs(world.render().astype(int) - opening).max() <= 2


def test_images_follow_the_camera_and_the_robot(world: World) -> None:
    world.reset("drawer-open", 0)
    before = world.render()
    for _ in range(10):
        world.step((0.0, 0.0, -1.0, -1.0))
    assert not np.array_equal(world.render(), before)
    world.reset("drawer-open", 0)
    assert np.array_equal(world.render(), before)
    moved = World(image_size=64, camera=Camera(azimuth=230.0))
    moved.reset("drawer-open", 0)
    assert np.abs(moved.render().astype(int) - before).mean() > 5


def test_a_second_camera_goes_with_the_hand() -> None:
    both = World(image_size=64, cameras=2)
    lowest: dict[str, list[float]] = {"agentview": [], "robot0_eye_in_hand": []}
    for down in (0, 10):
        both.reset("drawer-open", 0)
        for _ in range(down):
            both.step((0.0, 0.0, -1.0, -1.0))
        pictures = both.images()
        for name, picture in pictures.items():
            red, green, _ = np.moveaxis(picture.astype(int), 2, 0)
            lowest[name].append(np.argwhere((red > 90) & (red > 3 * green))[:, 0].max())  # lower end of the red arm
    assert np.array_equal(pictures["agentview"], both.render())
    assert lowest["agentview"][1] - lowest["agentview"][0] > 3
    assert abs(lowest["robot0_eye_in_hand"][1] - lowest["robot0_eye_in_hand"][0]) < 3


def test_the_set_point_stays_near_a_hand_that_is_held_back(world: World) -> None:
    world.reset("drawer-open", 0)
    for _ in range(60):
        world.step((0.0, 0.0, -1.0, -1.0))  # into the table
    for _ in range(8):  # as many steps as the leash is long, and two
        world.step((0.0, 0.0, 1.0, -1.0))
    low = world.scene.state.hand[2]
    world.step((0.0, 0.0, 1.0, -1.0))
    assert world.scene.state.hand[2] > low
    assert LEASH_M < 0.08


@pytest.mark.parametrize("action", [(0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 0.0), (0.0, np.inf, 0.0, 0.0)])
def test_a_bad_action_is_refused(world: World, action: tuple[float, ...]) -> None:
    world.reset("drawer-open", 0)
    with pytest.raises(SimulationError, match="4 finite numbers"):
        world.step(action)


def test_misuse_is_named(world: World) -> None:
    with pytest.raises(SimulationError, match="from 16 to 1024, got 4"):
        World(image_size=4)
    with pytest.raises(SimulationError, match="call reset first"):
        World().render()
    world.reset("drawer-open", 0)
    with pytest.raises(SimulationError, match="window-open does not belong to the scene drawer"):
        world.success("window-open")


@pytest.mark.parametrize(
    "nothing",
    [
        {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "LD_LIBRARY_PATH": "/nowhere"},
        {"MUJOCO_GL": "egl", **{f"__EGL_VENDOR_LIBRARY_{kind}": "/nowhere" for kind in ("DIRS", "FILENAMES")}},
    ],
    ids=["osmesa", "egl"],
)
def test_a_machine_that_cannot_render_is_told_which_packages_to_install(nothing: dict[str, str]) -> None:
    code = "from flashvla_ros.sim.world import World; World().reset('drawer-open', 0)"
    environment = {**os.environ, **nothing}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        pytest.skip("this machine renders all the same")
    assert "SimulationError" in result.stderr
    assert "libegl1" in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize("module", ["flashvla_ros.nodes.robot_frames", "flashvla_ros.sim.world"])
def test_rendering_is_headless_whatever_is_imported_first(module: str) -> None:
    code = f"import {module}, mujoco.gl_context; print(mujoco.gl_context.GLContext.__module__)"
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "mujoco.egl", result.stderr


def test_joint_names_are_the_robots_own(world: World) -> None:
    world.reset("drawer-open", 0)
    joints = world.scene.joint_positions
    assert list(joints)[:7] == [f"right_j{number}" for number in range(7)]
    assert len(joints) == 9


def test_a_shoved_object_is_elsewhere_until_the_next_reset(world: World) -> None:
    for task in TASKS:
        world.reset(task, 3)
        before = world.render()
        world.scene.move_object((0.05, 0.0, 0.0))
        assert np.abs(world.render().astype(int) - before).max() > 50
        world.reset(task, 3)
        assert np.array_equal(world.render(), before)


@pytest.mark.parametrize("backend", ["foo", "glfw", ""])
def test_another_way_to_draw_is_one_line_or_works(backend: str) -> None:
    code = "from flashvla_ros.sim.world import World; w = World(32); w.reset('drawer-open', 0); w.render(); w.close()"
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in screens} | {"MUJOCO_GL": backend}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "Exception ignored" not in ran.stderr
    if backend:
        assert ran.returncode and f"MUJOCO_GL is '{backend}'" in ran.stderr.splitlines()[-1]
    else:
        assert ran.returncode == 0, ran.stderr
