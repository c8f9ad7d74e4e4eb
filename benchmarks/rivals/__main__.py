"""Ours and the field's rules side by side, in closed loop and in milliseconds: ``python -m benchmarks.rivals``.

Every configuration plays the same seeds of the same tasks, seeds outermost, so that a run that is stopped has as many
episodes of each; the ledger beside the JSON keeps what is finished. Then each answers the frames of one recorded
episode, all in turn with transformers' plain ``generate``: the median of the steps that ran the model is the model
time, by processor time on a CPU. A mean step weights it, and the steps that did not run it, by the reuse rate of the
closed loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.rivals import efficientvla, l2_gate, rule, sp_vla, vla_cache, vla_pruner
from benchmarks.rivals.page import draw, page
from benchmarks.rivals.rule import Rule
from benchmarks.rivals.timing import Step, timed
from flashvla_ros.bench.configurations import PLAIN
from flashvla_ros.bench.measure import describe_backend
from flashvla_ros.bench.rounds import Row
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, Inference, Observation
from flashvla_ros.evaluation import jobs
from flashvla_ros.evaluation.jobs import Job, Record
from flashvla_ros.evaluation.ledger import EpisodeLedger, beside, code_digest
from flashvla_ros.evaluation.meta import known_tasks
from flashvla_ros.evaluation.modes import choose_modes
from flashvla_ros.evaluation.summary import ALL, Cell, table_rows
from flashvla_ros.sim.perturbation import NONE, plan_episode
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.step import VLAPolicy

MODES = ("dense", "prune", "paper", "gate", "guarded", "guarded:decode.mode=draft")
RULES: Mapping[str, Callable[[VLAPolicy], Rule]] = {
    "L2 gate": l2_gate.L2Gate,
    "SP-VLA": sp_vla.SpeedRule,
    "SP-VLA, norm": functools.partial(sp_vla.SpeedRule, by_norm=True),
    "VLA-Pruner 50 %": vla_pruner.UnionPruner,
    "EfficientVLA layers": efficientvla.FewerLayers,
    "VLA-Cache": vla_cache.CachedTokens,
}
_TIMED_SEED = 10**9  # of the episode whose frames are timed; no other episode has it


class Configuration(NamedTuple):
    """A row: settings of ours, and the rival's rule where it is one."""

    name: str
    settings: Settings
    rule: Rule | None

    def stepper(self, policy: VLAPolicy) -> Stepper:
        """Return a control step that plays by it."""
        return Stepper(self.rule or policy, ActionSpec.of(self.settings.action))

    def key(self, job: Job, checkpoint: str) -> str:
        """Return the key of an episode; ours have that of ``flashvla-ros eval``."""
        if self.rule is None:
            return job.key(checkpoint)
        files = rule.__file__, sys.modules[type(self.rule).__module__].__file__
        code = b"".join(Path(str(file)).read_bytes() for file in files)
        return hashlib.sha256(f"{job.key(checkpoint)} {self.name}".encode() + code).hexdigest()[:20]


class RivalCost:
    """Adds up what a rule says that its steps cost; see :class:`flashvla_ros.evaluation.jobs.Cost`."""

    def __init__(self, by: Rule) -> None:
        self._rule = by
        self.visual = self.total = 0.0
        self.fresh: list[bool] = []

    def add(self, _result: StepResult) -> None:
        """Count one control step."""
        work = self._rule.work
        self.visual, self.total = self.visual + work.visual, self.total + work.total
        self.fresh.append(work.total > 0.0)


def configurations(checkpoint: Path, only: list[str]) -> tuple[OpenVLAPolicy, list[Configuration]]:
    """Return the dense policy and every configuration, or those whose names are given."""
    overrides = {"model.checkpoint": str(checkpoint), "model.threads": 1}
    modes = choose_modes(MODES, share_path("config", "eval_modes.yaml"))
    settings = {mode.name: mode.settings(overrides) for mode in modes}
    policy = jobs.policy_of(settings["dense"].model)
    found = [Configuration(name, one, None) for name, one in settings.items()]
    rules = {name: make for name, make in RULES.items() if not only or name in only}
    found += [Configuration(name, settings["dense"], make(policy)) for name, make in rules.items()]
    return policy, [one for one in found if not only or one.name in (*only, "dense")]


def play(
    rows: list[Configuration], tasks: list[str], seeds: range, path: Path, checkpoint: str
) -> tuple[list[Cell], dict[str, Any]]:
    """Play what the ledger does not hold yet; return all, and for ``meta`` who played them."""
    ledger, keys = EpisodeLedger(path), {}
    with ledger, tqdm(total=len(rows) * len(tasks) * len(seeds), unit="episode", mininterval=INTERVAL_S) as bar:
        for seed in seeds:
            for task in tasks:
                for row in rows:
                    job = Job(row.settings, plan_episode(task, seed))
                    key = keys[row.name, task, seed] = row.key(job, checkpoint)
                    if key not in ledger.records:
                        ledger.add(key, _record(job, row.rule))
                    bar.update()
    cells = [
        Cell(row.name, task, NONE, seeds, [ledger.records[keys[row.name, task, seed]] for seed in seeds])
        for row in rows
        for task in tasks
    ]
    return cells, ledger.origins(keys.values())


def _record(job: Job, by: Rule | None) -> Record:
    if by is None:
        return jobs.run_job(job)
    cost = RivalCost(by)
    record = jobs.record_of(jobs.play(job, cost.add, by), cost)
    return dataclasses.replace(record, reused=len(record.reuse_ticks))


def timed_rows(policy: OpenVLAPolicy, rows: list[Configuration], task: str, cells: list[Row]) -> dict[str, Row]:
    """Return what :func:`.timing.timed` finds on the frames of one episode of a task."""
    frames: list[Observation] = []
    jobs.play(Job(rows[0].settings, plan_episode(task, _TIMED_SEED)), lambda result: frames.append(result.observation))

    def step_of(row: Configuration) -> Step:
        stepper = row.stepper(policy)

        def step(seen: Observation) -> tuple[Inference, bool]:
            result = stepper.step(seen, row.settings)
            return result.inference, result.fresh if row.rule is None else row.rule.work.total > 0.0

        return step

    steps = {row.name: functools.partial(step_of, row) for row in rows}
    return timed(policy, steps, frames, {cell["mode"]: cell["reuse_rate"] for cell in cells})


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Play, measure, and return ``{"meta": …, "rows": …}``."""
    torch.set_num_threads(1)
    policy, rows = configurations(args.checkpoint, args.only)
    tasks = args.tasks or known_tasks(args.checkpoint)
    sha256, seeds = checkpoint_fingerprint(args.checkpoint), range(args.episodes)
    cells, origins = play(rows, tasks, seeds, beside(args.json), sha256)
    found = [row for row in table_rows(cells) if row["task"] == ALL]
    taken = timed_rows(policy, rows, tasks[0], found)
    found = [row | taken[row["mode"]] for row in found]
    made = meta(
        **describe_backend(policy.backend),
        command="rivals",
        checkpoint={"name": args.checkpoint.resolve().name, "sha256": sha256, "code": code_digest()},
        tasks=tasks,
        seeds=[0, args.episodes],
        plain=taken[PLAIN],
        **origins,
    )
    return {"meta": made, "rows": found}


def main() -> int:
    """Print a table, write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=share_path("models", "demo"), metavar="DIR")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="(those that the checkpoint knows)")
    parser.add_argument("--episodes", type=int, default=17, metavar="N", help="of each row and task (%(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows and dense")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="table; FILE.episodes.jsonl resumes")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="success against the mean step")
    args = parser.parse_args()

    def work() -> None:
        results = run(args)
        print(page(results))
        write_results(args.json, results["meta"], results["rows"])
        if args.plot:
            draw(results, args.plot)

    try:
        return exit_code(work, f"the same command goes on from {beside(args.json)}")
    finally:
        jobs.close_worlds()


if __name__ == "__main__":
    sys.exit(main())
