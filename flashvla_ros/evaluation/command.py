"""``flashvla-ros eval``: tasks, modes and seeds in closed loop; see docs/evaluation.md."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvla_ros.cli.fanout import add_arguments as add_fanout_arguments
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.results import write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path
from flashvla_ros.evaluation import markdown, video
from flashvla_ros.evaluation.jobs import Job, Record, close_worlds, run_job
from flashvla_ros.evaluation.ledger import Ledger
from flashvla_ros.evaluation.meta import fingerprint, known_tasks, meta_of
from flashvla_ros.evaluation.modes import BUILT_IN, Mode, choose_modes
from flashvla_ros.evaluation.summary import Cell, table_rows
from flashvla_ros.sim.perturbation import NONE, PERTURBATIONS, can_perturb, plan_episode
from flashvla_ros.sim.tasks import TASKS, find_task

LEDGER_SUFFIX = ".episodes.jsonl"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be played: every perturbation x mode x task x seed that makes sense."""

    checkpoint: Path
    modes: tuple[Mode, ...]
    tasks: tuple[str, ...]
    perturbations: tuple[str, ...]
    seeds: range
    overrides: dict[str, Any]
    free_running: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> Evaluation:
        """Read the command's arguments; one line of error says what is wrong with them."""
        checkpoint = args.checkpoint or share_path("models", "demo")
        if args.episodes < 1 or args.seed < 0:
            raise FlashVLAError(
                f"--episodes must be at least 1 and --seed at least 0, got {args.episodes} and {args.seed}"
            )
        perturbations = tuple(dict.fromkeys(args.perturb))
        tasks = tuple(find_task(task).name for task in args.tasks or known_tasks(checkpoint))
        for name in perturbations:
            if not any(can_perturb(TASKS[task], name) for task in tasks):
                raise FlashVLAError(f"{name} needs a task that shares its scene with another, got {', '.join(tasks)}")
        return cls(
            checkpoint=checkpoint,
            modes=tuple(choose_modes(args.modes, args.modes_file or share_path("config", "eval_modes.yaml"))),
            tasks=tuple(dict.fromkeys(tasks)),
            perturbations=perturbations,
            seeds=range(args.seed, args.seed + args.episodes),
            overrides=parse_overrides(args.set),
            free_running=args.free_running,
        )

    def job(self, mode: Mode, task: str, perturbation: str, seed: int) -> Job:
        """Return one episode as a piece of work; one thread for each model, since episodes run side by side."""
        overrides = {"model.threads": 1, **self.overrides, "model.checkpoint": str(self.checkpoint)}
        return Job(mode.settings(overrides), plan_episode(task, seed, perturbation), self.free_running)

    def cells(self) -> list[tuple[str, Mode, str]]:
        """Return (perturbation, mode, task) in the order of the table."""
        return [
            (perturbation, mode, task)
            for perturbation in self.perturbations
            for mode in self.modes
            for task in self.tasks
            if can_perturb(TASKS[task], perturbation)
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of the checkpoint (the demo policy)")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help=f"those that the checkpoint knows; {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["dense", "prune", "paper", "guarded"],
        metavar="MODE",
        help=f"{', '.join(BUILT_IN)}, one of --modes-file, or NAME:parameter=value,… (dense prune paper guarded)",
    )
    parser.add_argument("--modes-file", type=Path, metavar="YAML", help="more modes (config/eval_modes.yaml)")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="of each mode and task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (%(default)s)")
    parser.add_argument(
        "--perturb",
        nargs="+",
        default=[NONE],
        choices=PERTURBATIONS,
        metavar="P",
        help=f"{', '.join(PERTURBATIONS)} (%(default)s)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for every mode")
    parser.add_argument("--free-running", action="store_true", help="the robot goes on while the model thinks")
    parser.add_argument(
        "--json", type=Path, metavar="F", help="write the table there, and resume from F.episodes.jsonl"
    )
    parser.add_argument("--ledger", type=Path, metavar="F", help="file of finished episodes, which runs may share")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="draw success against visual-token FLOPs")
    parser.add_argument("--markdown", type=Path, metavar="F.md", help="write the table, or the report, as Markdown")
    parser.add_argument("--video", type=Path, metavar="DIR", help="write films of --video-episodes there")
    parser.add_argument(
        "--video-episodes",
        nargs="+",
        metavar="TASK:MODE:SEED[:P]",
        help="episodes to film (the first seed of each task in the last mode)",
    )
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="F.json", help="play nothing: make the results page of these files"
    )
    add_fanout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if args.report:
        from flashvla_ros.evaluation.report import compose

        return compose(args.report, args.markdown, args.plot)
    if args.plot:
        from flashvla_ros.evaluation import plot  # before the episodes: where matplotlib is missing, it says so now
    evaluation = Evaluation.of(args)
    films = video.parse_episodes(evaluation, args.video_episodes) if args.video else []
    meta, started_s = meta_of(evaluation), time.monotonic()
    try:
        rows = table_rows(play(evaluation, args))
        results = {"meta": meta | {"seconds": round(time.monotonic() - started_s)}, "rows": rows}
        print(markdown.console(rows))
        if args.json:
            write_results(args.json, results["meta"], rows)
        if args.markdown:
            markdown.write(args.markdown, markdown.page(results))
        if args.plot:
            plot.draw([results], args.plot)
        for film in films:
            print(video.write(film, args.video))
    finally:
        close_worlds()
    return 0


def play(evaluation: Evaluation, args: argparse.Namespace) -> list[Cell]:
    """Play the episodes that are not in the ledger yet and return all."""
    path = args.ledger or (args.json and args.json.with_name(args.json.name + LEDGER_SUFFIX))
    checkpoint = fingerprint(evaluation.checkpoint)
    keys: dict[tuple[str, str, str, int], str] = {}
    jobs: dict[str, Job] = {}
    for seed in evaluation.seeds:  # outermost: what is stopped half-way has as many episodes of every mode
        for perturbation, mode, task in evaluation.cells():
            job = evaluation.job(mode, task, perturbation, seed)
            key = keys[perturbation, mode.name, task, seed] = job.key(checkpoint)
            jobs.setdefault(key, job)  # two modes with the same settings play once
    records = _play(jobs, path, args)
    return [
        Cell(
            mode.name,
            task,
            perturbation,
            evaluation.seeds,
            [records[keys[perturbation, mode.name, task, seed]] for seed in evaluation.seeds],
        )
        for perturbation, mode, task in evaluation.cells()
    ]


def _play(jobs: dict[str, Job], path: Path | None, args: argparse.Namespace) -> dict[str, Record]:
    ledger = Ledger(path)
    todo = {key: job for key, job in jobs.items() if key not in ledger.records}
    if foreign := ledger.foreign & jobs.keys():
        print(
            f"{len(foreign)} episodes of {path} were played by other code than this; delete it to play them again",
            file=sys.stderr,
        )
    results = fan_out(run_job, list(todo.values()), jobs=args.jobs, ray=args.ray, ray_gpus=args.ray_gpus)
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="episode", smoothing=0.05)
    try:
        with ledger, bar:
            for key, record in zip(todo, results, strict=True):
                ledger.add(key, record)
                bar.update()
    except KeyboardInterrupt:
        if path:
            print(f"stopped; {path} has what is finished, and the same command goes on from there", file=sys.stderr)
        raise
    return ledger.records
