"""``flashvla-ros eval``: tasks, modes and seeds in closed loop; see docs/evaluation.md."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.fanout import add_arguments as add_fanout_arguments
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.results import write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import write_text
from flashvla_ros.core.paths import checkpoint_folder, share_path
from flashvla_ros.evaluation import markdown, suites, video
from flashvla_ros.evaluation.jobs import close_worlds, run_job
from flashvla_ros.evaluation.ledger import beside
from flashvla_ros.evaluation.meta import known_tasks, meta_of
from flashvla_ros.evaluation.modes import BUILT_IN, choose_modes
from flashvla_ros.evaluation.open_loop import OPEN_LOOP
from flashvla_ros.evaluation.plan import Evaluation, play
from flashvla_ros.evaluation.summary import table_rows
from flashvla_ros.sim.libero.protocol import render_for
from flashvla_ros.sim.perturbation import ANYWHERE, NONE, PERTURBATIONS, can_perturb
from flashvla_ros.sim.tasks import find_task

_MODES = ("dense", "prune", "paper", "guarded")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    suites.add_arguments(parser)
    parser.add_argument(
        "--modes",
        nargs="+",
        action="extend",
        metavar="MODE",
        help=f"{', '.join(BUILT_IN)}, one of --modes-file, or NAME:parameter=value,… ({' '.join(_MODES)})",
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="of each mode and task (20; of LIBERO all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="first seed (%(default)s)")
    parser.add_argument(
        "--perturb",
        nargs="+",
        action="extend",
        choices=PERTURBATIONS,
        metavar="P",
        help=f"{', '.join(PERTURBATIONS)} ({NONE})",
    )
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
        action="extend",
        metavar="TASK:MODE:SEED[:P]",
        help="episodes to film (the first seed of each task in the last mode that looks)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        action="extend",
        metavar="F.json",
        help="play nothing: make one page of these files",
    )
    add_fanout_arguments(parser)


def evaluation_of(args: argparse.Namespace) -> Evaluation:
    """Return what the arguments ask for; one line of error says what is wrong with them."""
    checkpoint = checkpoint_folder(args.checkpoint)
    if (args.episodes is not None and args.episodes < 1) or args.seed < 0:
        raise FlashVLAError(f"--episodes must be at least 1 and --seed at least 0, got {args.episodes} and {args.seed}")
    perturbations = tuple(dict.fromkeys(args.perturb or [NONE]))
    chosen = suites.chosen_tasks(args)
    tasks = tuple(chosen or (find_task(task).name for task in args.tasks or known_tasks(checkpoint)))
    for name in perturbations:
        if not any(can_perturb(find_task(task), name) for task in tasks):
            needs = f"another scene than LIBERO's, which has {', '.join(ANYWHERE)}"
            needs = needs if chosen else "a task that shares its scene with another"
            raise FlashVLAError(f"{name} needs {needs}, got {', '.join(tasks)}")
    overrides, modes = parse_overrides(args.set), args.modes or _MODES
    presets: dict[str, Any] = {}
    render = "official"
    seeds = range(args.seed, args.seed + (args.episodes or 20))
    if chosen:
        from flashvla_ros.vla.checkpoint import load_config

        seeds, modes = suites.chosen_states(args, tasks), [*modes, OPEN_LOOP]
        config = load_config(checkpoint)
        render = args.render or render_for(config.towers[0].image_size)
        known = None if "model.unnorm_key" in overrides else config.norm_stats
        presets = suites.presets(tasks[0], render, known, config.oft.get("proprio", ()))
    return Evaluation(
        checkpoint=checkpoint,
        modes=tuple(choose_modes(modes, args.modes_file or share_path("config", "eval_modes.yaml"))),
        tasks=tuple(dict.fromkeys(tasks)),
        perturbations=perturbations,
        seeds=seeds,
        overrides=overrides,
        free_running=args.free_running,
        presets=presets,
        render=render,
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if args.plot:
        import matplotlib  # noqa: F401  # before the episodes: where it is missing, this says so now
    if args.report:
        results = [markdown.read_evaluation(file) for file in args.report]
        _write(results, args)
        if not args.markdown:
            print(markdown.page(results), end="")
        return 0
    evaluation = evaluation_of(args)
    if args.video_episodes and not args.video:
        raise FlashVLAError("--video-episodes needs --video DIR, where the films go")
    films = video.parse_episodes(evaluation, args.video_episodes) if args.video else []
    meta, started_s = meta_of(evaluation), time.monotonic()
    try:
        workers = functools.partial(fan_out, run_job, jobs=args.jobs, ray=args.ray, ray_gpus=args.ray_gpus)
        ledger = args.ledger or (args.json and beside(args.json))
        cells, origins = play(evaluation, meta["checkpoint"]["sha256"], ledger, workers)
        rows = table_rows(cells)
        meta |= {**origins, "seconds": round(time.monotonic() - started_s)}
        print(markdown.console(rows))
        if args.json:
            write_results(args.json, meta, rows)
        _write([{"meta": meta, "rows": rows}], args)
        for film in films:
            print(video.write(film, args.video))
    finally:
        close_worlds()
    return 0


def _write(results: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Write the page and the picture that were asked for."""
    if args.markdown:
        write_text(args.markdown, markdown.page(results))
    if args.plot:
        from flashvla_ros.evaluation import plot

        plot.draw(results, args.plot)
