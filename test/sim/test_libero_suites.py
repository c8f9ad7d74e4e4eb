"""LIBERO's suites on the command line: what is asked for, and what is refused in one line. No LIBERO needed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shlex
from pathlib import Path

import numpy as np
import pytest
from fakes import SPEC

from flashvla_ros import __main__ as cli
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, Observation
from flashvla_ros.evaluation import suites
from flashvla_ros.evaluation.meta import command_line
from flashvla_ros.evaluation.modes import choose_modes
from flashvla_ros.evaluation.open_loop import TapePolicy, UnseenWorld
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.sim.episode import action_from_command
from flashvla_ros.sim.perturbation import can_perturb
from flashvla_ros.sim.settings import RobotSettings
from flashvla_ros.sim.tasks import Task
from flashvla_ros.sim.world import World

INSTALLED = importlib.util.find_spec("libero") is not None
TASK = Task("libero_object/0", "pick up the milk", "libero_object/0", 280, hold_steps=1)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    from flashvla_ros.evaluation.command import add_arguments

    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many states LIBERO has of each task, without LIBERO."""
    counts = {"libero_object_with_mug/1": 10}
    monkeypatch.setattr(suites, "task_files", lambda task: task)
    monkeypatch.setattr(suites, "initial_states", lambda task: range(counts.get(task, 50)))
    return counts


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        ((), 0, 49),
        (("--states", "0:10"), 0, 9),
        (("--states", "40:50"), 40, 49),
        (("--seed", "7", "--episodes", "2"), 7, 8),
    ],
)
def test_states_are_seeds(words: tuple[str, ...], first: int, last: int) -> None:
    seeds = suites.chosen_states(options(*words), ["libero_object/0", "libero_object/1"])
    assert (seeds[0], seeds[-1]) == (first, last)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--states", "10:10"), "A below B"),
        (("--states", "ten"), "A:B"),
        (("--states", "45:51"), "initial states 0 to 49, got 50"),
        (("--seed", "40", "--episodes", "20"), "initial states 0 to 49, got 59"),
        (("--states", "0:10", "--episodes", "3"), "leave --episodes and --seed away"),
        (("--states", "0:10", "--seed", "3"), "leave --episodes and --seed away"),
    ],
)
@pytest.mark.usefixtures("states")
def test_states_that_are_not_there_are_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(FlashVLAError, match=says):
        suites.chosen_states(options(*words), ["libero_object/0"])


@pytest.mark.usefixtures("states")
def test_a_variation_of_ten_states_has_ten_episodes() -> None:
    tasks = ["libero_object_with_mug/0", "libero_object_with_mug/1"]
    assert suites.chosen_states(options(), tasks[1:]) == range(10)
    assert suites.chosen_states(options("--seed", "7"), tasks[1:]) == range(7, 10)
    with pytest.raises(FlashVLAError, match="with_mug/1 has 10 initial states and .*with_mug/0 50: give --states 0:10"):
        suites.chosen_states(options(), tasks)
    assert suites.chosen_states(options("--states", "0:10"), tasks) == range(10)
    with pytest.raises(FlashVLAError, match="with_mug/1 has the initial states 0 to 9, got 10"):
        suites.chosen_states(options("--states", "0:11"), tasks)


@pytest.mark.usefixtures("states")
def test_permuted_states_end_where_training_begins() -> None:
    permuted = ["libero_object_permuted/0"]
    assert suites.chosen_states(options(), permuted) == range(50)
    assert len(suites.chosen_states(options("--states", "0:200"), permuted)) == 200
    with pytest.raises(FlashVLAError, match="permuted/0 has the initial states 0 to 999999999"):
        suites.chosen_states(options("--seed", str(10**9), "--episodes", "1"), permuted)


def test_an_option_given_twice_adds_to_the_first() -> None:
    words = ("--suite", "libero_object", "--suite", "libero_object_swap", "--modes", "dense", "--modes", "prune")
    given = options(*words)
    assert (given.suite, given.modes) == (["libero_object", "libero_object_swap"], ["dense", "prune"])
    assert options("--perturb", "latency", "--perturb", "frame_drops").perturb == ["latency", "frame_drops"]
    assert (options().suite, options().modes) == ([], None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--suite", "libero_objects"), "libero_object"),
        (("--suite", "libero_object/3"), "give libero_object/3 to --tasks"),
        (("--suite", "libero_object", "libero_goal"), "one suite and its variations"),
        (("--suite", "libero_object", "--tasks", "drawer-open"), "go with no others"),
        (("--suite", "libero_goal", "--tasks", "libero_object/3"), "not all of libero_goal"),
        (("--tasks", "libero_object/12"), "libero_object/0 to libero_object/9"),
    ],
)
def test_what_is_no_suite_or_task_is_refused(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["eval", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.skipif(INSTALLED, reason="LIBERO is installed")
def test_without_libero_the_remedy_is_named(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["eval", "--suite", "libero_object"]) == 2
    error = capsys.readouterr().err
    assert "LIBERO is not installed" in error
    assert "make setup-libero" in error
    assert error.count("\n") == 1


def test_the_command_of_a_table_plays_its_episodes_again() -> None:
    modes = tuple(choose_modes(["dense"], share_path("config", "eval_modes.yaml")))
    values = {"action.names": ("x", "y"), "model.threads": 2}
    evaluation = Evaluation(
        Path("models/x"), modes, ("libero_object/0",), ("none",), range(3), values, False, render="official"
    )
    program, command, *words = shlex.split(command_line(evaluation))
    assert (program, command) == ("flashvla-ros", "eval")
    again = options(*words)
    assert again.render == "official"  # also for images of another size, where fast ones would be chosen
    assert parse_overrides(again.set) == values
    assert (again.suite, again.tasks) == ([], ["libero_object/0"])
    whole = tuple(task for suite in ("libero_object_swap", "libero_object") for task in suites.tasks_of(suite))
    again = options(*shlex.split(command_line(dataclasses.replace(evaluation, tasks=whole)))[2:])
    assert (again.suite, again.tasks) == (["libero_object_swap", "libero_object"], None)


def test_the_protocol_is_preset() -> None:
    values = suites.presets("libero_goal/3", "official", ["libero_goal_no_noops"])
    settings = Settings().with_values(values)
    assert ActionSpec.of(settings.action).size == 7
    assert (settings.action.dt_s, settings.action.gripper, settings.command.gripper) == (0.05, (1.0, 0.0), (-1.0, 1.0))
    assert (settings.model.unnorm_key, settings.model.center_crop) == ("libero_goal_no_noops", 0.9)
    assert settings.gate.gripper_middle == 0.5
    assert settings.model.proprio[3:] == ("ax", "ay", "az", "gripper0_finger_joint1", "gripper0_finger_joint2")
    assert suites.presets("libero_goal/3", "fast", None)["model.center_crop"] == 1.0
    assert suites.presets("libero_goal/3", "fast", None, ["a", "b"])["model.proprio"] == ("a", "b")


def test_a_twist_becomes_the_offset_of_one_tick() -> None:
    velocity = [20.0, -10.0, 0.0, 4.0, 0.0, -60.0]
    np.testing.assert_allclose(action_from_command(velocity, -1.0, 0.05, 1.0), [1.0, -0.5, 0.0, 0.2, 0.0, -1.0, -1.0])
    assert not action_from_command([np.nan, *velocity[1:]], 1.0, 0.05, 1.0)[:6].any()


def test_only_what_needs_no_scene_disturbs_libero() -> None:
    assert can_perturb(TASK, "camera_noise")
    assert not any(
        can_perturb(TASK, name) for name in ("object_jump", "lighting", "camera_shake", "instruction_switch")
    )


def test_a_tape_is_played_by_the_clock_and_then_stands_still() -> None:
    actions = [np.array([0.01, 0.0, 0.0, -1.0]), np.array([0.0, 0.01, 0.0, 1.0])]
    policy = TapePolicy(actions, SPEC.dt_s)
    stepper, settings = Stepper(policy, SPEC), Settings().with_values({"gate.mode": "off", "pruning.method": "none"})
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    steps = [
        stepper.step(Observation({"image": image}, "go", number * SPEC.dt_s), settings).command[0]
        for number in (0, 1, 2, 9)
    ]
    np.testing.assert_allclose(steps, [*actions, [0, 0, 0, 1.0], [0, 0, 0, 1.0]])


def test_a_replay_is_shown_its_start_for_ever() -> None:
    world = World(32)
    unseen = UnseenWorld(world)
    try:
        unseen.reset("drawer-open", 0)
        (start,) = unseen.images().values()
        for _ in range(5):
            unseen.step([1.0, 0.0, 0.0, 1.0])
        assert start is next(iter(unseen.images().values())) and not unseen.success("drawer-open")
        assert (world.render() != start).any()
    finally:
        world.close()


def test_a_robot_node_that_would_misread_liberos_commands_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"rate_hz must be 20 for libero_object/3, .* got 10"):
        RobotSettings(task="libero_object/3")
    RobotSettings(task="libero_object/3", rate_hz=20.0)
