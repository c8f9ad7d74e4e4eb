"""``flashvla-ros eval`` for real: the demo policy in the simulation, resumed, repeated, filmed, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest

from flashvla_ros import __main__ as cli
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation import jobs, markdown
from flashvla_ros.evaluation.jobs import run_job
from flashvla_ros.evaluation.meta import meta_of
from flashvla_ros.evaluation.modes import choose_modes
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.perturbation import NONE, plan_episode
from flashvla_ros.sim.rollout import Outcome

try:
    import flashvla_ros.sim.world  # noqa: F401
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)

SHORT = ["--tasks", "drawer-close", "--modes", "dense", "guarded", "--episodes", "1"]


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps are enough to see that an episode was played."""
    from flashvla_ros.sim import tasks

    row = tasks.TASKS["drawer-close"]
    monkeypatch.setitem(tasks.TASKS, row.name, tasks.Task(row.name, row.instruction, row.scene, max_steps=10))


def test_an_evaluation_is_played_once_and_films_are_the_same_episodes(
    tmp_path: Path, short_episodes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = []
    monkeypatch.setattr("flashvla_ros.evaluation.command.run_job", lambda job: played.append(job) or run_job(job))
    file, page, films = tmp_path / "x.json", tmp_path / "x.md", tmp_path / "films"
    command = ["eval", *SHORT, "--json", str(file)]
    assert cli.main([*command, "--markdown", str(page)]) == 0
    assert len(played) == 2
    content = json.loads(file.read_text())
    assert [(row["mode"], row["task"]) for row in content["rows"]] == [
        (mode, task) for mode in ("dense", "guarded") for task in ("drawer-close", "all")
    ]
    assert content["meta"]["checkpoint"]["name"] == "demo"
    assert str(Path.cwd()) not in file.read_text() + page.read_text()
    assert "| `guarded` | 0/1 |" in page.read_text()
    # Again, with one mode and one episode more, and a film: only what is new is played.
    more = [*command[:-2], "--modes", "dense", "guarded", "gate", "dense:pruning.keep_ratio=1.0"]
    more += ["--json", str(file), "--video", str(films), "--video-episodes", "drawer-close:dense:0"]
    assert cli.main(more) == 0
    assert len(played) == 4
    meta = json.loads(file.read_text())["meta"]
    assert (meta["codes"], meta["other_code"], meta["from_ledger"]) == ({meta["code"]: 4}, 0, 2)
    assert "2 of 4 episodes from earlier runs; " in markdown.page([json.loads(file.read_text())])
    assert "failure in 10 steps, 0 reused" in capsys.readouterr().out
    (film,) = films.iterdir()
    capture = cv2.VideoCapture(str(film))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 20  # ten steps, and a second of the last one
    assert capture.read()[0]


def test_a_film_is_of_a_mode_that_looks_and_a_replay_is_filmed_as_it_happens(
    tmp_path: Path, short_episodes: None
) -> None:
    command = ["eval", "--tasks", "drawer-close", "--episodes", "1", "--modes", "dense", "open_loop", "--video"]
    assert cli.main([*command, str(tmp_path / "first")]) == 0
    assert [film.name for film in (tmp_path / "first").iterdir()] == ["drawer-close-dense-0.mp4"]
    assert cli.main([*command, str(tmp_path / "second"), "--video-episodes", "drawer-close:open_loop:0"]) == 0
    (film,) = (tmp_path / "second").iterdir()
    capture = cv2.VideoCapture(str(film))
    first, *_, last = (capture.read()[1].astype(int) for _ in range(10))
    assert (abs(last - first) > 60).any()


@pytest.mark.parametrize(("perturbation", "free_running"), [("frame_drops", False), ("none", True)])
def test_a_replay_has_a_command_for_every_tick_whatever_disturbs_it(
    perturbation: str, free_running: bool, short_episodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled, roll_out = [], jobs.roll_out

    def spied(world: Any, stepper: Any, plan: EpisodePlan, *rest: Any, free_running: bool) -> Outcome:
        rolled.append((plan.perturbation, free_running))
        return roll_out(world, stepper, plan, *rest, free_running=free_running)

    monkeypatch.setattr(jobs, "roll_out", spied)
    settings = Settings().with_values({"model.checkpoint": str(share_path("models", "demo")), "model.threads": 1})
    played: list[dict[int, list[float]]] = []
    for disturbed, free in (("none", False), (perturbation, free_running)):
        steps: dict[int, list[float]] = {}
        job = jobs.Job(settings, plan_episode("drawer-close", 5, disturbed), free, open_loop=True)
        jobs.play(job, lambda result, into=steps: into.update({_tick(result): result.command[0].tolist()}))
        played.append(steps)
    as_recorded, replayed = played
    assert sorted(as_recorded) == list(range(10))
    assert len(replayed) >= 5
    assert replayed == {step: as_recorded[step] for step in replayed}
    assert set(rolled[:-1]) == {("none", False)} and rolled[-1] == (perturbation, free_running)  # tapes come first


def _tick(result: StepResult) -> int:
    return round(result.observation.stamp_s * 10)


def test_a_film_that_cannot_be_written_is_one_line(
    tmp_path: Path, short_episodes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["eval", *SHORT, "--json", str(tmp_path / "x.json"), "--video", str(tmp_path / "file")]) == 2
    assert f"cannot make the folder {tmp_path / 'file'}: File exists" in capsys.readouterr().err


def test_the_same_seed_and_mode_give_the_same_episode_step_for_step(short_episodes: None) -> None:
    from flashvla_ros.evaluation.command import evaluation_of

    seen: list[list] = [[], []]
    for steps in seen:
        jobs.policy_of.cache_clear()
        jobs.close_worlds()
        evaluation = evaluation_of(_options(*SHORT, "--perturb", "camera_noise"))
        job = evaluation.job(evaluation.modes[1], "drawer-close", "camera_noise", 3)
        jobs.play(
            job,
            lambda result, steps=steps: steps.append(
                (result.decision.reason, result.command.tolist(), result.observation.images["image"].tobytes())
            ),
        )
    jobs.close_worlds()
    assert len(seen[0]) == 10
    assert seen[0] == seen[1]


def _options(*arguments: str):
    import argparse

    from flashvla_ros.evaluation.command import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "gaurded"], "did you mean guarded"),
        (["--tasks", "drawer-opne"], "did you mean drawer-open"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--set", "gate.detla=1"], "did you mean gate.delta"),
        (["--tasks", "door-open", "--perturb", "instruction_switch"], "needs a task that shares its scene"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--modes", "prune:pruning.layer=9"], "pruning.layer must be below 4"),
        (["--video", "x", "--video-episodes", "drawer-open:0"], "--video-episodes takes TASK:MODE:SEED"),
        (["--video-episodes", "drawer-open:dense:0"], "--video-episodes needs --video"),
        (["--set", "model.checkpoint=x"], "give the folder to --checkpoint"),
        (["--modes", "dense", "dense:model.checkpoint=x"], "give the folder to --checkpoint"),
        (["--modes-file", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["--states", "0:10"], "--states and --render are LIBERO's"),
        (["--report", "/nowhere.json"], "/nowhere.json is no result"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_how_many_images_are_seen_is_known_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = choose_modes(["dense"], share_path("config", "eval_modes.yaml"))
    folder, tokens = share_path("models", "demo-oft"), []
    for images in (1, 2):
        plan = Evaluation(folder, tuple(dense), ("drawer-open",), (NONE,), range(1), {"model.images": images}, False)
        tokens.append(meta_of(plan)["checkpoint"]["visual_tokens"])
    assert tokens[1] == 2 * tokens[0]
    for words in (["--set", "model.images=3"], ["--modes", "dense", "prune:model.images=3"]):
        assert cli.main(["eval", *words, "--episodes", "1", "--json", str(tmp_path / "table.json")]) == 2
        error = capsys.readouterr().err
        assert "sees 3 cameras (num_images_in_input), and a simulated robot has 2" in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mode_may_say_which_statistics_it_goes_by(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(share_path("models", "demo"), tmp_path / "weights"))
    config = json.loads((folder / "config.json").read_text())
    config["norm_stats"] |= {"other": next(iter(config["norm_stats"].values()))}
    (folder / "config.json").write_text(json.dumps(config))
    names = ["dense:model.unnorm_key=metaworld", "prune:model.unnorm_key=other"]
    modes = tuple(choose_modes(names, share_path("config", "eval_modes.yaml")))
    assert meta_of(Evaluation(folder, modes, ("drawer-open",), (NONE,), range(1), {}, False))["modes"].keys() == {
        *names
    }


def test_a_policy_for_libero_asks_for_its_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"task": f"{suite}/0"} for suite in ("libero_object", "libero_object_permuted")]
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": rows}))
    assert cli.main(["eval", "--checkpoint", str(tmp_path)]) == 2
    assert "say which with --suite libero_object libero_object_permuted" in capsys.readouterr().err
