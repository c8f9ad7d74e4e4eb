"""LIBERO for real: resets, pixels, an episode of the expert, an evaluation. Needs `make setup-libero`, and minutes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint

from flashvla_ros import __main__ as cli
from flashvla_ros.core.errors import SimulationError
from flashvla_ros.evaluation.ledger import beside

if importlib.util.find_spec("libero") is None:
    pytest.skip("LIBERO is not installed: make setup-libero", allow_module_level=True)

from flashvla_ros.sim.libero import protocol
from flashvla_ros.sim.libero.cameras import LiberoCameras, near_camera
from flashvla_ros.sim.libero.library import initial_states, library, quiet, task_files
from flashvla_ros.sim.libero.scene import LiberoScene
from flashvla_ros.sim.libero.world import LiberoWorld
from flashvla_ros.sim.simulator import mujoco
from flashvla_ros.sim.tasks import find_task
from training import libero
from training.libero import driver_of, plan_episode, record, restaged, seen_at
from training.libero_expert import LiberoExpert, object_in
from training.libero_expert import main as libero_expert

pytestmark = [pytest.mark.libero, pytest.mark.timeout(900)]

OBJECT = "libero_object/0"
POLICY = Path(__file__).parents[2] / "models" / "libero-plain"
WAIT = [0.0] * 6 + [-1.0]


def official(task: str, episode: int, **options: Any) -> Any:
    """An environment as OpenVLA's evaluation has it at the start of an episode: hard resets, counted from seed(0)."""
    files = task_files(task)
    with quiet():
        environment = library().environment(
            bddl_file_name=str(files.scene), use_camera_obs=False, has_renderer=False, **options
        )
    environment.seed(0)
    for _ in range(episode + 1):
        environment.reset()
    environment.set_init_state(initial_states(files)[episode])
    for _ in range(protocol.WAITING_STEPS):
        environment.step(WAIT)
    return environment


def motions(count: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0])) for _ in range(count)]


def state_of(environment: Any) -> np.ndarray:
    model, data = environment.sim.model._model, environment.sim.data._data
    return np.concatenate([data.qpos, data.qvel, model.body_pos.ravel()])


def episodes(file: Path) -> list[dict[str, Any]]:
    """What the ledger of an evaluation keeps of its episodes, but for how long they took."""
    lines = map(json.loads, beside(file).read_text().splitlines())
    records = [{"key": line["key"], **line["record"]} for line in lines]
    clocks = ("fresh_ticks", "reuse_ticks")
    kept = [{n: len(v) if n in clocks else v for n, v in record.items()} for record in records]
    return sorted(kept, key=lambda record: record["key"])


@pytest.fixture(scope="module")
def world() -> Iterator[LiberoWorld]:
    world = LiberoWorld(128, "fast")
    yield world
    world.close()


@pytest.mark.parametrize(
    "task",
    [
        "libero_object/0",
        "libero_spatial/0",  # has a cabinet and a stove
        "libero_spatial/4",  # and a drawer that is open, which draws too
    ],
)
def test_a_soft_reset_is_a_hard_one_with_its_fixtures_bit_for_bit(task: str) -> None:
    scene = LiberoScene(task)
    for episode in (2, 0, protocol.FIRST_DRAWN):
        scene.reset(episode)
        for action in motions(5):
            scene.step(action)
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    scene.reset(1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # nobody else's draws are touched
    environment = official(task, 1, has_offscreen_renderer=False)
    np.testing.assert_array_equal(scene.state(), state_of(environment))
    for action in motions():
        scene.step(action)
        environment.step(action)
    np.testing.assert_array_equal(scene.state(), state_of(environment))
    environment.close()
    scene.close()


def test_official_pixels_are_robosuites() -> None:
    environment = official(OBJECT, 0, has_offscreen_renderer=True)
    scene = LiberoScene(OBJECT)
    scene.reset(0)
    cameras = LiberoCameras(scene.model, scene.data, "official", 224, 1)
    for name in protocol.CAMERAS:
        turned = environment.sim.render(256, 256, camera_name=name)[::-1, ::-1]
        np.testing.assert_array_equal(cameras._raw(name)[:, ::-1], turned)
    assert cameras.picture(protocol.CAMERAS[0]).shape == (224, 224, 3)
    cameras.close()
    environment.close()
    scene.close()


@pytest.mark.parametrize("task", [OBJECT, "libero_spatial/0"])
def test_fast_pictures_look_at_what_objects_stand_on(task: str) -> None:
    scene = LiberoScene(task)
    scene.reset(0)
    middle = near_camera(scene.table_height).lookat[2]
    for name in scene.objects:
        assert 0.0 < middle - scene.extent(name)[0][2] < 0.2
    scene.close()


def test_the_expert_ends_an_episode_with_the_first_success(world: LiberoWorld) -> None:
    world.reset(OBJECT, 0)
    expert, steps = LiberoExpert(world.scene, "alphabet_soup_1"), 0
    while not world.success(OBJECT) and steps < find_task(OBJECT).max_steps:
        world.step(expert())
        steps += 1
    assert world.success(OBJECT)
    assert steps < 150
    assert world.render().shape == (128, 128, 3)


def test_permuted_states_come_from_their_seed_alone(world: LiberoWorld) -> None:
    task = f"libero_object{protocol.PERMUTED}/0"
    states = []
    for seed in (3, 4, 3):
        world.reset(task, seed)
        for action in motions(5):
            world.step(action)
        states.append(world.scene.state())
    np.testing.assert_array_equal(states[0], states[2])
    assert np.abs(states[0] - states[1]).max() > 0.05


def test_no_two_tasks_swap_alike_at_a_seed() -> None:
    """Else one draw of places would count as an episode of each of ten tasks."""
    scene, places = LiberoScene(f"libero_object{protocol.PERMUTED}/0"), []
    for number in range(10):
        scene.task = f"libero_object{protocol.PERMUTED}/{number}"
        scene.reset(3)
        places.append([np.mean(scene.extent(name), axis=0)[:2].round(1).tolist() for name in scene.objects])
    scene.close()
    assert len({str(place) for place in places}) > 7


def test_a_picture_of_other_places_leaves_the_episode_as_it_was(world: LiberoWorld) -> None:
    states, rng = [], np.random.default_rng(0)
    for looks in (False, True):
        world.reset(OBJECT, 0)
        scene, expert = world.scene, LiberoExpert(world.scene, "alphabet_soup_1")
        others = [name for name in scene.objects if name not in ("alphabet_soup_1", scene.container)]
        for _ in range(40):
            action = expert()
            if looks:
                before = {name: scene.extent(name)[0] for name in scene.objects}
                with restaged(scene, rng, "alphabet_soup_1"):
                    moved = {name: np.abs(scene.extent(name)[0] - before[name]).max() for name in scene.objects}
                assert max(moved["alphabet_soup_1"], moved[scene.container]) < 1e-3
                assert max(moved[name] for name in others) > 0.05
            world.step(action)
        states.append(scene.state())
    np.testing.assert_array_equal(*states)


def test_a_demonstration_has_frames_of_scenes_that_nothing_moved_into(world: LiberoWorld) -> None:
    names = [f"{name}_1" for name in ("alphabet_soup", "milk", "ketchup")]
    plan = dataclasses.replace(plan_episode(1, 0, 0), noise=0.0)
    frames = record(world, plan, names, [*names, "basket_1"])
    count = len(frames["done"])
    assert all(len(values) == count for name, values in frames.items() if name != "images")
    assert frames["done"][-1] and not frames["done"][:-1].any()
    assert frames["actions"].shape == (count, 7) and np.abs(frames["actions"]).max() <= 1.0
    shown = np.bincount(frames["image"], minlength=len(frames["images"]))
    present = len(set(names) & set(world.scene.objects))
    assert set(shown) == {1, present}  # of what is held, or of each thing that may be picked
    first = frames["image"] == 0
    assert len(np.unique(frames["instruction"][first])) == len(np.unique(frames["seen"][first], axis=0)) == present
    soup = frames["auxiliary"][:, 4:6]
    assert len(np.unique(soup.round(3), axis=0)) > len(shown) / 4


def test_a_policy_drives_and_the_expert_labels(world: LiberoWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero, "DRIVEN_STEPS", 8)
    policy, answers = driver_of(POLICY), []

    def drive(image: np.ndarray, words: str) -> np.ndarray:
        assert words == "pick up the alphabet soup and place it in the basket"
        answers.append(policy(image, words))
        return np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0])  # it goes astray

    frames = record(
        world, dataclasses.replace(plan_episode(0, 0, 0), noise=0.0), ["alphabet_soup_1"], ["alphabet_soup_1"], drive
    )
    heights = frames["auxiliary"][:, 2]
    assert heights[-1] > heights[0] + 0.01 and (frames["actions"][:, 2] < 0).all() and not frames["done"].any()
    assert np.shape(answers) == (8, 7) and np.abs(answers).max() <= 1.0


@pytest.mark.parametrize("name", ["alphabet_soup_1", "milk_1"])
def test_a_place_is_seen_where_the_picture_changes_without_the_thing(world: LiberoWorld, name: str) -> None:
    world.reset(OBJECT, 0)
    scene = world.scene
    expected = seen_at(np.mean(scene.extent(name), axis=0), scene.model.vis.global_.fovy)
    before = world.render().astype(int)
    scene.data.qpos[scene.model.jnt_qposadr[scene.model.body(f"{name}_main").jntadr[0]] + 2] -= 1.0  # under the floor
    mujoco.mj_forward(scene.model, scene.data)
    changed = np.argwhere(np.abs(world.render() - before).sum(-1) > 60)
    scene_rows = changed[changed[:, 0] < 80]
    np.testing.assert_allclose((scene_rows.mean(0) + 0.5) / 128, expected, atol=0.03)


@pytest.mark.parametrize("suite", ["libero_goal", "libero_10", "libero_90", "libero_object_swap", "libero_spatial_lan"])
def test_every_suite_has_its_files(suite: str) -> None:
    last = protocol.base_suite(suite).tasks - 1
    assert find_task(f"{suite}/{last}").instruction
    assert len(initial_states(task_files(f"{suite}/{last}"))) == 50
    assert find_task(f"{suite}/0{last}").name == f"{suite}/{last}"


def test_what_a_variation_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "none.npz", states=np.zeros((0, 93)))
    files = task_files(OBJECT)._replace(states=tmp_path / "none.npz")
    with pytest.raises(SimulationError, match="has no initial states of pick_up_the_alphabet_soup"):
        initial_states(files)

    def missing(**_: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "red_stick.xml")

    monkeypatch.setattr("flashvla_ros.sim.libero.scene.library", lambda: library()._replace(environment=missing))
    with pytest.raises(SimulationError, match="lacks red_stick.xml, which libero_object/0 needs"):
        LiberoScene(OBJECT)


def test_the_robots_state_is_robosuites_observation(world: LiberoWorld) -> None:
    world.reset(OBJECT, 0)
    scene = world.scene
    for action in motions(3):
        world.step(action)
    seen = scene._environment.env._get_observations()
    pose = scene.hand_pose
    np.testing.assert_array_equal(
        [*pose.position, *pose.orientation], [*seen["robot0_eef_pos"], *seen["robot0_eef_quat"]]
    )
    joints = [scene.data.joint(name).qpos[0] for name in scene.joint_positions]
    np.testing.assert_allclose(list(scene.joint_positions.values()), joints, atol=1e-2)  # the arm moves on by 2 ms
    assert list(scene.joint_positions)[-2:] == ["gripper0_finger_joint1", "gripper0_finger_joint2"]


def test_a_drawn_start_is_the_same_whatever_came_before() -> None:
    scene, states = LiberoScene("libero_spatial/4"), []
    for before in (protocol.FIRST_DRAWN + 1, 2):
        scene.reset(before)
        scene.reset(protocol.FIRST_DRAWN)
        states.append(scene.state())
    np.testing.assert_array_equal(*states)
    for seed in (-1, 2**32):
        with pytest.raises(SimulationError, match=f"a seed is from 0 to 4294967295, got {seed}"):
            scene.reset(seed)
    scene.close()


def test_a_suite_that_is_not_there_names_those_that_are_whole() -> None:
    with pytest.raises(
        SimulationError, match=r"has no files of libero_object_swapp/0.*_swap, .*_temp_x0\.1, "
    ) as error:
        task_files("libero_object_swapp/0")
    assert "two_episodes" not in str(error.value)
    assert task_files("libero_object_temp_x0.1/9").scene.is_file()


def test_only_what_is_played_is_filmed(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--checkpoint", str(POLICY), "--tasks", OBJECT, "--states", "0:1", "--video", "x"]
    for episode, says in (
        ("libero_object/1:dense:0", "name it in --tasks"),
        ("drawer-open:dense:0", "name it in --tasks"),
        (f"{OBJECT}:dense:50", "initial states 0 to 49, got 50"),
    ):
        assert cli.main([*command, "--video-episodes", episode]) == 2
        assert says in capsys.readouterr().err


def test_the_expert_refuses_what_is_no_task_of_its_own(world: LiberoWorld, tmp_path: Path) -> None:
    world.reset(OBJECT, 0)
    with pytest.raises(SimulationError, match="in the words of libero_object, got 'open the drawer'"):
        object_in(world.scene, "open the drawer")
    assert libero_expert(["--film", str(tmp_path / "nowhere" / "x.mp4")]) == 2


def test_an_evaluation_with_its_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(protocol.SUITES, "libero_object", protocol.Suite("libero_object", 10, 6))
    statistics = {"action": {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 7, "mask": [True] * 6 + [False]}}
    folder = write_checkpoint(tmp_path / "tiny", tiny_config(norm_stats={"libero_object_no_noops": statistics}))
    file = tmp_path / "x.json"
    command = ["eval", "--checkpoint", str(folder), "--suite", "libero_object", "--tasks", OBJECT, "--states", "0:1"]
    assert cli.main([*command, "--modes", "dense", "--json", str(file)]) == 0
    rows = {(row["mode"], row["task"]): row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == {(mode, task) for mode in ("dense", "open_loop") for task in (OBJECT, "all")}
    assert rows["open_loop", OBJECT]["visual_flops_ratio"] == 0.0
    assert rows["dense", OBJECT]["steps_median"] == 6
    assert cli.main([*command, "--modes", "dense", "--json", str(tmp_path / "y.json"), "--jobs", "2"]) == 0
    assert episodes(tmp_path / "y.json") == episodes(file)
    other = write_checkpoint(tmp_path / "other", tiny_config(norm_stats={"bridge_orig": statistics}))
    assert cli.main(["eval", "--checkpoint", str(other), "--suite", "libero_object"]) == 2
    assert "no statistics of libero_object (norm_stats: bridge_orig)" in capsys.readouterr().err


def test_the_policy_that_ships_does_what_it_is_told(tmp_path: Path) -> None:
    file, permuted = tmp_path / "x.json", "libero_object_permuted"
    command = ["eval", "--checkpoint", str(POLICY), "--suite", permuted, "--tasks", f"{permuted}/1", "--states", "0:1"]
    assert cli.main([*command, "--modes", "dense", "--jobs", "1", "--json", str(file)]) == 0
    rows = {row["mode"]: row for row in json.loads(file.read_text())["rows"] if row["task"] == "all"}
    assert rows["dense"]["successes"] == 1 and rows["open_loop"]["successes"] == 0
