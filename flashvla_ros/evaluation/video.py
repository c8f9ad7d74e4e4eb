"""Films of chosen episodes: what the robot saw, what was pruned, what was reused and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.evaluation.jobs import Job, play
from flashvla_ros.evaluation.open_loop import OPEN_LOOP
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.evaluation.suites import check_states
from flashvla_ros.sim.libero.protocol import is_libero
from flashvla_ros.sim.perturbation import NONE
from flashvla_ros.sim.tasks import find_task
from flashvla_ros.view.overlay import draw

_LAST_FRAME_S = 1.0  # the end stays on the screen for this long


@dataclasses.dataclass(frozen=True)
class Film:
    """An episode to film, and the name of its file without the suffix."""

    name: str
    job: Job


def parse_episodes(evaluation: Evaluation, texts: Sequence[str] | None) -> list[Film]:
    """Read ``task:mode:seed`` or ``task:mode:seed:perturbation``; the mode is one of the evaluation's.

    Raises:
        FlashVLAError: A text has another form, or names what there is not.
    """
    if not texts:
        looking = [mode for mode in evaluation.modes if not mode.name.startswith(OPEN_LOOP)]
        mode, first = (looking or evaluation.modes)[-1], evaluation.seeds[0]
        texts = [f"{task}:{mode.name}:{first}" for task in evaluation.tasks]
    by_name = {mode.name: mode for mode in evaluation.modes}
    films = []
    for text in texts:
        task, _, rest = text.partition(":")
        name = next((name for name in sorted(by_name, key=len, reverse=True) if rest.startswith(f"{name}:")), "")
        seed, _, perturbation = rest.removeprefix(f"{name}:").partition(":")
        if not name or not seed.isdecimal():
            modes = ", ".join(by_name)
            raise FlashVLAError(f"--video-episodes takes TASK:MODE:SEED[:P] with a mode of {modes}, got {text!r}")
        if find_task(task).name not in evaluation.tasks:
            raise FlashVLAError(f"--video-episodes films what is played, got {task}: name it in --tasks or --suite too")
        if is_libero(task):
            check_states([task], int(seed))
        job = evaluation.job(by_name[name], task, perturbation or NONE, int(seed))
        label = "-".join(part for part in (task, name, seed, perturbation) if part)
        films.append(Film("".join(c if c.isalnum() or c in "-_.=" else "_" for c in label), job))
    return films


def write(film: Film, folder: Path) -> str:
    """Play an episode again and write its film; return a line that says what it shows.

    Raises:
        FlashVLAError: The film cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashVLAError(f"cannot make the folder {folder}: {error.strerror}") from error
    path = folder / f"{film.name}.mp4"
    rate_hz = 1.0 / film.job.settings.action.dt_s
    writer = _Writer(path, rate_hz)
    try:
        outcome = play(film.job, writer.step, shown=True)
    finally:
        writer.close()
    return f"{path}: {'success' if outcome.success else 'failure'} in {outcome.steps} steps, {outcome.reused} reused"


class _Writer:
    """Opens the file with the first picture, whose size it has."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        self._path, self._rate_hz = path, rate_hz
        self._writer: Any = None
        self._last: Any = None

    def step(self, result: StepResult) -> None:
        """Add one control step."""
        picture: Any = cv2.cvtColor(draw(result), cv2.COLOR_RGB2BGR)
        if self._writer is None:
            height, width = picture.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate_hz, (width, height))
            if not self._writer.isOpened():
                raise FlashVLAError(f"cannot write {self._path}: OpenCV cannot open it as mp4v")
        self._writer.write(picture)
        self._last = picture

    def close(self) -> None:
        """Hold the last picture for a while and finish the file."""
        if self._last is None:
            return
        for _ in range(round(self._rate_hz * _LAST_FRAME_S)):
            self._writer.write(self._last)
        self._writer.release()
