"""Configurations timed in turn, so that whatever else the machine does hits all of them alike, and their rows."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.bench.measure import Roofline, Work
from flashvla_ros.core.types import FloatArray, Inference, Observation

Runner = Callable[[Observation], Inference]
Row = dict[str, Any]
_RESAMPLES = 2000
_UNTIL_CAPTURED = 10  # steps of a configuration


@dataclasses.dataclass
class Series:
    """What one configuration did, round by round.

    Attributes:
        seconds: Time of each step.
        cpu_seconds: Processor time of each step, all threads together; empty where a GPU does the work. On a busy
            machine it says more than the clock.
        inferences: Result of each step.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    inferences: list[Inference] = dataclasses.field(default_factory=list)

    @property
    def array(self) -> FloatArray:
        """[rounds] seconds."""
        return np.asarray(self.seconds)

    def stages(self) -> dict[str, FloatArray]:
        """Stage name to its seconds [rounds]."""
        names = self.inferences[0].timings_s
        return {name: np.array([run.timings_s[name] for run in self.inferences]) for name in names}


def time_in_turn(
    runners: Mapping[str, Runner],
    observations: Sequence[Observation],
    rounds: int,
    synchronize: Callable[[], None],
    after_round: Callable[[int], None],
    *,
    cpu: bool,
    limit_s: float = math.inf,
    warm_up: int = 1,
) -> dict[str, Series]:
    """Time every runner once a round on the same observation, each round beginning with another one.

    Args:
        runners: Name to what runs one step.
        observations: Round r sees number r, and then from the start again.
        rounds: Timed rounds.
        synchronize: Waits until the device has done all that was asked of it.
        after_round: Called with the number of the round, from 1, as it ends.
        cpu: Whether processor time is the device's time.
        limit_s: No round begins after this time, but for the first two.
        warm_up: Rounds before them that do not count; on a GPU as many as it takes to capture every graph.
    """
    names = list(runners)
    series = {name: Series() for name in names}
    begun_s = time.perf_counter()
    for number in range(-(warm_up if cpu else _UNTIL_CAPTURED), rounds):
        if number > 1 and time.perf_counter() - begun_s > limit_s:
            break
        observation = observations[number % len(observations)]
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize()
            started_s, cpu_s = time.perf_counter(), time.process_time()
            inference = runners[name](observation)
            synchronize()
            elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
            if number >= 0:
                series[name].seconds.append(elapsed_s)
                series[name].cpu_seconds += [cpu_s] * cpu
                series[name].inferences.append(inference)
        if number >= 0:
            after_round(number + 1)
    return series


@dataclasses.dataclass(frozen=True)
class Speedup:
    """Ratio of a baseline's time to another's, paired by round.

    Attributes:
        median: Of the rounds' ratios.
        low, high: 95 % bootstrap interval of that median (percentile method, 2000 resamples of rounds).
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, baseline: FloatArray, other: FloatArray, seed: int = 0) -> Speedup:
        """Compare seconds [rounds] of the same rounds."""
        ratios = baseline / other
        drawn: NDArray[np.intp] = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
        low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
        return cls(float(np.median(ratios)), float(low), float(high))


def model_row(name: str, series: Series, plain: Series, works: Mapping[str, Work], roofline: Roofline) -> Row:
    """Return the row of a configuration that runs the model at every step; `works` is stage name to work, or empty."""
    last = series.inferences[-1]
    row = times(name, series, plain) | {
        "kept": last.visual_tokens if last.kept is None else len(last.kept),
        "visual_tokens": last.visual_tokens,
        "draft_accepted": last.draft_accepted if last.draft_tokens else None,
        "stages": _stages(series, works, roofline),
    }
    if works:
        least_s = sum(roofline.least_s(work) for work in works.values())
        row |= {
            "flops": sum(work.flops for work in works.values()),
            "least_ms": 1e3 * least_s,
            "over_least": float(np.median(series.array)) / least_s,
        }
    return row


def times(name: str, series: Series, plain: Series) -> Row:
    """Return percentiles of a configuration's steps, and their ratio to the baseline's of the same rounds."""
    seconds = series.array
    row = step_row(name, seconds, float(seconds.mean()), Speedup.of(plain.array, seconds))
    if series.cpu_seconds:
        row["cpu_p50_ms"] = 1e3 * float(np.median(series.cpu_seconds))
        row["cpu_speedup"] = Speedup.of(np.asarray(plain.cpu_seconds), np.asarray(series.cpu_seconds)).median
    return row


def step_row(name: str, seconds: FloatArray, mean_s: float, speedup: Speedup) -> Row:
    """Return what every row says of its steps."""
    p50, p95 = np.percentile(1e3 * seconds, (50, 95))
    return {
        "name": name,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "mean_ms": 1e3 * mean_s,
        "speedup": speedup.median,
        "speedup_95": [speedup.low, speedup.high],
    }


def _stages(series: Series, works: Mapping[str, Work], roofline: Roofline) -> dict[str, Row]:
    stages: dict[str, Row] = {}
    for stage, seconds in series.stages().items():
        p50_s = float(np.median(seconds))
        row: Row = {"p50_ms": 1e3 * p50_s}
        if stage in works:
            work = works[stage]
            least_s = roofline.least_s(work)
            row |= dataclasses.asdict(work) | {"least_ms": 1e3 * least_s}
            if least_s > 0.0:  # a random choice reads nothing
                row["over_least"] = p50_s / least_s
        stages[stage] = row
    return stages
