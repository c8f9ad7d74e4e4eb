"""From timed rounds to rows of ``flashvla-ros bench``: percentiles, ratios, stages against the roofline, the mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashvla_ros.bench.roofline import Roofline
from flashvla_ros.bench.rounds import Series, Speedup
from flashvla_ros.bench.trace import TraceStep
from flashvla_ros.bench.work import Work
from flashvla_ros.core.types import FloatArray

Row = dict[str, Any]


def model_row(name: str, series: Series, plain: Series, works: Mapping[str, Work], roofline: Roofline) -> Row:
    """Return the row of a configuration that runs the model at every step.

    Args:
        name: Of the configuration.
        series: Its rounds.
        plain: Those of the baseline.
        works: Stage name to its work; may be empty.
        roofline: Of the device.
    """
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
    p50, p95 = np.percentile(1e3 * seconds, (50, 95))
    speedup = Speedup.of(plain.array, seconds)
    row = {
        "name": name,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "mean_ms": 1e3 * float(seconds.mean()),
        "speedup": speedup.median,
        "speedup_95": [speedup.low, speedup.high],
    }
    if series.cpu_seconds:
        row["cpu_p50_ms"] = 1e3 * float(np.median(series.cpu_seconds))
        row["cpu_speedup"] = Speedup.of(np.asarray(plain.cpu_seconds), np.asarray(series.cpu_seconds)).median
    return row


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


def side_row(seconds: FloatArray) -> Row:
    """Return p50 and p95 of what is not run in rounds: the gate, publishing."""
    p50, p95 = np.percentile(1e3 * seconds, (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "repeats": len(seconds)}


def mix_row(
    name: str, trace: Sequence[TraceStep], fresh: Sequence[FloatArray], side_s: float, plain: FloatArray
) -> Row:
    """Return the row of a gated run: every step of a trace takes the time that its kind took in this run.

    Args:
        name: Of the row.
        trace: Decisions, step by step.
        fresh: [rounds] seconds of a fresh step in each round, one array for each fresh step of the trace.
        side_s: Gate and publishing, paid at every step.
        plain: [rounds] seconds of the baseline, which pays neither.
    """
    rounds = len(plain)
    infer = np.stack(fresh) + side_s  # [fresh steps, rounds]
    reused = len(trace) - len(infer)
    mean = (infer.sum(axis=0) + reused * side_s) / len(trace)  # [rounds]
    steps = np.concatenate([infer.ravel(), np.full(reused * rounds, side_s)])
    speedup = Speedup.of(plain, mean)
    p50, p95 = np.percentile(1e3 * steps, (50, 95))
    return {
        "name": name,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "mean_ms": 1e3 * float(np.median(mean)),  # over the trace; of the rounds the median, as one may be disturbed
        "speedup": speedup.median,
        "speedup_95": [speedup.low, speedup.high],
        "steps": len(trace),
        "reuse_rate": reused / len(trace),
    }
