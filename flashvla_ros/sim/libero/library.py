"""The LIBERO that is installed, imported once and quietly; and what it says of a task."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.extras import remedy
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim.libero.protocol import PERMUTED, SUITES, base_suite, split_task

_OWN_WORDS = ("_lan", "_task")  # variations whose instruction is not that of the suite; their files have it


_GRADE = re.compile(r"(?<=_temp)_[xy]\d\.\d$")  # the tasks of all grades of a shift stand under one name


class Library(NamedTuple):
    """What is used of the installed packages."""

    environment: Any
    path: Any
    tasks: dict[str, list[str]]
    words: Any
    problem: Any
    quaternions: Any


class TaskFiles(NamedTuple):
    """A task: what the robot is told, its scene in BDDL, and its initial states."""

    instruction: str
    scene: Path
    states: Path


@functools.cache
def library() -> Library:
    """Import LIBERO and robosuite.

    Raises:
        SimulationError: They are not installed, or MuJoCo cannot start.
    """
    import flashvla_ros.sim.simulator  # noqa: F401 - says what is missing for headless rendering, before robosuite fails

    try:
        with quiet():
            import robosuite.utils.transform_utils as quaternions
            from libero.libero import get_libero_path
            from libero.libero.benchmark import grab_language_from_filename
            from libero.libero.benchmark.libero_suite_task_map import libero_task_map
            from libero.libero.envs.bddl_utils import get_problem_info
            from libero.libero.envs.env_wrapper import ControlEnv
    except ImportError as error:
        raise SimulationError(f"LIBERO is not installed ({error}): {remedy('libero')}") from error
    return Library(
        ControlEnv, get_libero_path, libero_task_map, grab_language_from_filename, get_problem_info, quaternions
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep robosuite's advice, LIBERO's notes and the warnings that they switch on out of the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            yield
    finally:
        logging.disable(before)


@functools.cache
def task_files(task: str) -> TaskFiles:
    """Return the files of a task such as ``libero_object/3`` or, of LIBERO-PRO, ``libero_object_swap/3``.

    The instruction is the official one, made of the file's name, but where a variation is one of the words or of what
    is asked: then it is the scene's own.

    Raises:
        SimulationError: There is no such task, or its files are not among the installed ones.
    """
    name, number = split_task(task)
    found = library()
    folder = name.removesuffix(PERMUTED)
    scene, kept = _files_of(folder, number)
    if name.endswith(PERMUTED) and folder != "libero_object":  # fixtures of the others hold objects in their places
        raise SimulationError(f"permuted states are those of libero_object, not of {folder}: there is no {name}")
    if not _are_there(scene, kept):
        base = base_suite(name).name
        numbers, start = range(base_suite(name).tasks), f"{base}_"
        folders = sorted(path.name for path in scene.parent.parent.iterdir() if path.name.startswith(start))
        whole = [one for one in folders if all(_are_there(*_files_of(one, number)) for number in numbers)]
        usable = ", ".join(whole) or "no more"
        raise SimulationError(f"the installed LIBERO has no files of {task}; of {base} there are {usable}")
    if folder not in SUITES and folder.endswith(_OWN_WORDS):
        words = found.problem(str(scene))["language_instruction"]
        instruction = " ".join(words) if isinstance(words, list) else str(words)
    else:
        instruction = found.words(scene.name)
    return TaskFiles(instruction.strip().lower(), scene, kept)


def _files_of(folder: str, number: int) -> tuple[Path, Path]:
    """Return where the scene and the initial states of a task would be."""
    found = library()
    names = found.tasks.get(folder) or found.tasks.get(_GRADE.sub("", folder), [])
    name = names[number] if number < len(names) else "-"
    scenes, states = (Path(found.path(kind)) / folder for kind in ("bddl_files", "init_states"))
    return scenes / f"{name}.bddl", states / f"{name}.pruned_init.npz"


def _are_there(*files: Path) -> bool:
    return all(file.is_file() for file in files)


def initial_states(files: TaskFiles) -> FloatArray:
    """Return the task's states [50, 1 + nq + nv]: time, positions, velocities; of some variations there are 10.

    Raises:
        SimulationError: There are none.
    """
    with np.load(files.states, allow_pickle=False) as file:
        states = np.asarray(file["states"], dtype=np.float64)
    if not len(states):
        raise SimulationError(f"the installed LIBERO has no initial states of {files.scene.stem} in {files.states}")
    return states
