"""Is a setting worth trusting? Failure-triggered paired episodes and an exact bound, from the safest to the fastest.

An *induced failure* is a start that the reference masters and the accelerated policy does not. A success is none, so
the accelerated policy plays first and the reference only where it failed. With k of n starts the share of induced
failures is at most the upper end of the exact one-sided interval; a candidate is certified where that is within the
risk. The candidates are tried in a fixed order and the first that fails ends it, so no correction for their number is
due. n is fixed beforehand; only a candidate that cannot be certified any more ends early.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flashvla_ros.evaluation.jobs import Record
from flashvla_ros.evaluation.ledger import EpisodeLedger
from flashvla_ros.evaluation.modes import Mode
from flashvla_ros.evaluation.plan import Evaluation, Run
from flashvla_ros.evaluation.statistics import most_events, upper_bound
from flashvla_ros.sim.perturbation import NONE

Start = tuple[str, int]  # task and seed


@dataclasses.dataclass(frozen=True)
class Trials:
    """What one candidate came to; fewer starts than planned were played where it could not be certified any more."""

    candidate: Mode
    planned: int
    played: int
    failures: tuple[Start, ...]
    induced: tuple[Start, ...]  # failures at starts that the reference mastered
    bound: float  # upper end of the interval of the share of induced failures
    reuse_rate: float  # share of its control steps that reused an action
    certified: bool  # every start was played, and the bound is within the risk

    @property
    def episodes(self) -> int:
        """Episodes that were needed, those of the reference among them."""
        return self.played + len(self.failures)


class Certification:
    """Tries candidates, one after the other, each against the risk of induced failures with that confidence.

    The evaluation's first mode is the reference, the others are the candidates from the safest on. The ledger is open.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        checkpoint: str,
        ledger: EpisodeLedger,
        run: Run,
        *,
        risk: float,
        confidence: float,
    ) -> None:
        self._evaluation, self._checkpoint = evaluation, checkpoint
        self._ledger, self._run, self._confidence = ledger, run, confidence
        starts: list[Start] = [(task, seed) for seed in evaluation.seeds for task in evaluation.tasks]
        self.starts = sorted(starts, key=lambda start: evaluation.turn(start[0]))
        self.allowed = most_events(len(self.starts), risk, confidence)

    def tries(self, batch: int, on_episodes: Callable[[int], object]) -> Iterator[Trials]:
        """Yield each candidate's trials, up to the first that is not certified.

        So many starts are played at once, and `on_episodes` gets the number of those that were finished.
        """
        reference, *candidates = self._evaluation.modes
        for candidate in candidates:
            trials = self._try(candidate, reference, batch, on_episodes)
            yield trials
            if not trials.certified:
                return

    def _try(self, candidate: Mode, reference: Mode, batch: int, on_episodes: Callable[[int], object]) -> Trials:
        failures: list[Start] = []
        induced: list[Start] = []
        records: list[Record] = []
        for first in range(0, len(self.starts), batch):
            part = self.starts[first : first + batch]
            played = self._play(candidate, part)
            records += played
            failed = [start for start, record in zip(part, played, strict=True) if not record.success]
            again = self._play(reference, failed)
            failures += failed
            induced += [start for start, record in zip(failed, again, strict=True) if record.success]
            on_episodes(len(part))
            if len(induced) > self.allowed:
                break
        played_starts, steps = len(records), sum(record.control_steps for record in records)
        return Trials(
            candidate=candidate,
            planned=len(self.starts),
            played=played_starts,
            failures=tuple(failures),
            induced=tuple(induced),
            bound=upper_bound(len(induced), played_starts, self._confidence),
            reuse_rate=sum(record.reused for record in records) / steps,
            certified=played_starts == len(self.starts) and len(induced) <= self.allowed,
        )

    def _play(self, mode: Mode, starts: Sequence[Start]) -> list[Record]:
        """Return the records of some starts; those that the ledger has are not played again."""
        jobs = {start: self._evaluation.job(mode, start[0], NONE, start[1]) for start in starts}
        keys = {start: job.key(self._checkpoint) for start, job in jobs.items()}
        known = self._ledger.records.keys() - self._ledger.foreign
        todo = [start for start in starts if keys[start] not in known]
        for number, record in self._run([jobs[start] for start in todo]):
            self._ledger.add(keys[todo[number]], record)
        return [self._ledger.records[keys[start]] for start in starts]

    def tasks_digest(self) -> str:
        """Return 16 hexadecimal digits of what was asked: tasks, limits of an episode and seeds."""
        jobs = [self._evaluation.job(self._evaluation.modes[0], task, NONE, seed) for task, seed in self.starts]
        plans: list[dict[str, Any]] = [dataclasses.asdict(job.plan) for job in jobs]
        return hashlib.sha256(json.dumps(plans, sort_keys=True).encode()).hexdigest()[:16]
