"""What an evaluation plays: every perturbation, mode, task and seed; and playing it, from where the ledger ends."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation.jobs import Job, Record
from flashvla_ros.evaluation.ledger import EpisodeLedger
from flashvla_ros.evaluation.modes import Mode
from flashvla_ros.evaluation.open_loop import OPEN_LOOP
from flashvla_ros.evaluation.summary import Cell
from flashvla_ros.sim.libero.protocol import is_libero
from flashvla_ros.sim.perturbation import can_perturb, plan_episode
from flashvla_ros.sim.tasks import find_task

Run = Callable[[list[Job]], Iterator[tuple[int, Record]]]  # runs jobs; yields each one's number and record when done


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be played: every perturbation x mode x task x seed that makes sense."""

    checkpoint: Path
    modes: tuple[Mode, ...]
    tasks: tuple[str, ...]
    perturbations: tuple[str, ...]
    seeds: range
    overrides: dict[str, Any]  # parameters that the user gives for every mode
    free_running: bool
    presets: dict[str, Any] = dataclasses.field(default_factory=dict)  # go before them: what LIBERO's protocol fixes
    render: str = "official"  # how LIBERO's images are made

    def __post_init__(self) -> None:
        """Refuse a second checkpoint: ledger and results know the first one's fingerprint alone."""
        if any("model.checkpoint" in values for values in (self.overrides, *(mode.values for mode in self.modes))):
            raise SettingsError("model.checkpoint has no part in --set and --modes: give the folder to --checkpoint")

    @property
    def shared(self) -> dict[str, Any]:
        """Parameters of every mode that does not say otherwise; one thread a model, as episodes run side by side."""
        return {"model.threads": 1, **self.presets, **self.overrides}

    def settings(self, mode: Mode) -> Settings:
        """Return all that is in force in a mode."""
        return mode.settings({**self.shared, "model.checkpoint": str(self.checkpoint)})

    def job(self, mode: Mode, task: str, perturbation: str, seed: int) -> Job:
        """Return one episode as a piece of work."""
        plan = plan_episode(task, seed, perturbation)
        return Job(self.settings(mode), plan, self.free_running, self.render, open_loop=mode.name.startswith(OPEN_LOOP))

    def cells(self) -> list[tuple[str, Mode, str]]:
        """Return (perturbation, mode, task) in the order of the table."""
        return [
            (perturbation, mode, task)
            for perturbation in self.perturbations
            for mode in self.modes
            for task in self.tasks
            if can_perturb(find_task(task), perturbation)
        ]

    def turn(self, task: str) -> int:
        """When a task is played: LIBERO's one after the other, as a worker has room for one scene, others in turn."""
        return self.tasks.index(task) if is_libero(task) else 0


def play(evaluation: Evaluation, checkpoint: str, path: Path | None, run: Run) -> tuple[list[Cell], dict[str, Any]]:
    """Play the episodes that the ledger at `path` does not have yet; return all, and for ``meta`` who played them.

    `checkpoint` is the fingerprint of its files; without a path the episodes are kept in memory alone.
    """
    keys: dict[tuple[str, str, str, int], str] = {}
    jobs: dict[str, Job] = {}
    for seed in evaluation.seeds:  # outermost: what is stopped half-way has as many episodes of every mode
        for perturbation, mode, task in evaluation.cells():
            job = evaluation.job(mode, task, perturbation, seed)
            key = keys[perturbation, mode.name, task, seed] = job.key(checkpoint)
            jobs.setdefault(key, job)  # two modes with the same settings play once
    jobs = dict(sorted(jobs.items(), key=lambda item: evaluation.turn(item[1].plan.task.name)))
    ledger = _play(jobs, path, run)
    cells = [
        Cell(
            mode.name,
            task,
            perturbation,
            evaluation.seeds,
            [ledger.records[keys[perturbation, mode.name, task, seed]] for seed in evaluation.seeds],
        )
        for perturbation, mode, task in evaluation.cells()
    ]
    return cells, ledger.origins(jobs)


def _play(jobs: dict[str, Job], path: Path | None, run: Run) -> EpisodeLedger:
    ledger = EpisodeLedger(path)
    todo = {key: job for key, job in jobs.items() if key not in ledger.records}
    if foreign := ledger.foreign & jobs.keys():
        print(
            f"{len(foreign)} episodes of {path} were played by other code than this; delete it to play them again",
            file=sys.stderr,
        )
    done = len(jobs) - len(todo)
    bar = tqdm(total=len(jobs), initial=done, unit="episode", smoothing=0.05, mininterval=INTERVAL_S)
    try:
        with ledger, bar:
            keys = list(todo)
            for number, record in run(list(todo.values())):
                ledger.add(keys[number], record)
                bar.update()
    except KeyboardInterrupt:
        if path:
            print(f"stopped; {path} has what is finished, and the same command goes on from there", file=sys.stderr)
        raise
    return ledger
