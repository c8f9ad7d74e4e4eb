"""LIBERO's suites as an evaluation: which tasks and states, and what the official protocol fixes for all of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.parameter_files import DEFAULT_NODE, read_parameters
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path
from flashvla_ros.sim.libero.library import initial_states, task_files
from flashvla_ros.sim.libero.protocol import FIRST_DRAWN, PERMUTED, base_suite, is_libero, statistics_key
from flashvla_ros.sim.tasks import TASKS, find_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is played: by which checkpoint, under which settings, and what only LIBERO has."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of the checkpoint (the demo policy)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help=f"those that the checkpoint knows; {', '.join(TASKS)}",
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        action="extend",
        default=[],
        metavar="S",
        help="of LIBERO: libero_object, or a variation of it, …_permuted",
    )
    parser.add_argument("--modes-file", type=Path, metavar="YAML", help="more modes (config/eval_modes.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for every mode")
    parser.add_argument("--states", metavar="A:B", help="initial states A to B - 1 of each task (all)")
    parser.add_argument(
        "--render",
        choices=("official", "fast"),
        help="LIBERO's images: OpenVLA's own, of 224 pixels, or those of a policy trained with cheaper ones (by size)",
    )


def tasks_of(suite: str) -> list[str]:
    """Return the names of the tasks of a suite or of a variation of one; refuse, with FlashVLAError, one task."""
    if is_libero(suite):
        raise FlashVLAError(f"--suite takes the name of a suite, such as libero_object: give {suite} to --tasks")
    return [f"{suite}/{number}" for number in range(base_suite(suite).tasks)]


def chosen_tasks(args: argparse.Namespace) -> list[str]:
    """Return the names of LIBERO's tasks that the arguments ask for; none where they ask for the demo's.

    Raises:
        FlashVLAError: LIBERO is not installed, a suite or task is unknown, or they do not go together.
    """
    suites = {name: tasks_of(name) for name in args.suite}
    given = [task for task in args.tasks or () if is_libero(task)]
    if (given or suites) and len(given) < len(args.tasks or ()):
        raise FlashVLAError(f"tasks of LIBERO are suite/number and go with no others, got {', '.join(args.tasks)}")
    if given and suites and not {task.partition("/")[0] for task in given} <= suites.keys():
        raise FlashVLAError(f"--tasks takes a part of --suite: {', '.join(given)} are not all of {', '.join(suites)}")
    tasks = given or [task for suite in suites.values() for task in suite]
    if not tasks and (args.states, args.render) != (None, None):
        raise FlashVLAError("--states and --render are LIBERO's: name its tasks too, by --suite or as suite/number")
    if len({base_suite(task).name for task in tasks}) > 1:
        raise FlashVLAError("a checkpoint has the statistics of one suite: evaluate one suite and its variations")
    return [find_task(task).name for task in tasks]


def chosen_states(args: argparse.Namespace, tasks: Sequence[str]) -> range:
    """Return the initial states, which are the seeds of LIBERO's episodes.

    Raises:
        FlashVLAError: ``--states`` is of another form, or beyond the official states of a task.
    """
    if args.states is None:
        seeds = range(args.seed, args.seed + args.episodes if args.episodes else _all_states(tasks, args.seed))
    elif args.seed or args.episodes:
        raise FlashVLAError("--states says which episodes: leave --episodes and --seed away")
    elif (match := re.fullmatch(r"(\d+):(\d+)", args.states)) and int(match[1]) < int(match[2]):
        seeds = range(int(match[1]), int(match[2]))
    else:
        raise FlashVLAError(f"--states takes A:B with A below B, such as 0:10, got {args.states!r}")
    check_states(tasks, seeds[-1])
    return seeds


def check_states(tasks: Sequence[str], last: int) -> None:
    """Refuse, with FlashVLAError, a number of an initial state that one of the tasks does not have."""
    official = [task for task in tasks if not task.partition("/")[0].endswith(PERMUTED)]
    count, task = _fewest_states(official) if official else (FIRST_DRAWN, tasks[0])
    if last >= count:
        raise FlashVLAError(f"{task} has the initial states 0 to {count - 1}, got {last}")


def _fewest_states(tasks: Sequence[str]) -> tuple[int, str]:
    return min(_counts(tasks))


def _all_states(tasks: Sequence[str], first: int) -> int:
    """Return how many there are; refuse, with FlashVLAError, tasks that differ in it or have none from `first` on."""
    (fewest, one), (most, other) = min(counts := _counts(tasks)), max(counts)
    if fewest < most:
        raise FlashVLAError(f"{one} has {fewest} initial states and {other} {most}: give --states 0:{fewest}")
    check_states(tasks, first)
    return max(fewest, first + 1)


def _counts(tasks: Sequence[str]) -> list[tuple[int, str]]:
    return [(len(initial_states(task_files(task))), task) for task in tasks]


def presets(task: str, render: str, known: Collection[str] | None, proprio: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parameters that the protocol fixes: those of ``config/libero.yaml``, and the suite's statistics.

    Args:
        task: Any of the suite.
        render: How images are made.
        known: Data sets of the checkpoint's norm_stats; None where the user names one of them.
        proprio: Names of the state that the checkpoint was trained with, where it says them.

    Raises:
        CheckpointError: None of them is the suite's.
    """
    values = read_parameters(share_path("config", "libero.yaml"), DEFAULT_NODE)
    if known is not None:
        values["model.unnorm_key"] = statistics_key(task, known)
    if render == "fast":  # such a policy sees the whole image
        values["model.center_crop"] = 1.0
    if proprio:
        values["model.proprio"] = tuple(proprio)
    return values
