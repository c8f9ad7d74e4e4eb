"""The gated mix: what a step of a recorded run costs on average, at the times measured in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashvla_ros.bench.configurations import DENSE, PLAIN, default_name
from flashvla_ros.bench.report import Row, mix_row
from flashvla_ros.bench.rounds import Series
from flashvla_ros.bench.trace import TraceStep


def mixes(series: Mapping[str, Series], trace: Sequence[TraceStep], side_s: float) -> list[Row]:
    """Return a row for each mode of the trace and each way to run its fresh steps that was timed.

    Args:
        series: Name of a configuration to its rounds.
        trace: Decisions of one mode or several.
        side_s: Gate and publishing, paid at every step.
    """
    plain = series[PLAIN].array
    visual = series[PLAIN].inferences[0].visual_tokens
    rows = []
    for mode in dict.fromkeys(step.mode for step in trace):
        steps = [step for step in trace if step.mode == mode]
        count = sum(step.fresh for step in steps)
        for name in (DENSE, default_name(visual)):
            if name in series:
                fresh = [series[name].array] * count
                rows.append(mix_row(f"{mode} gate, {name}", steps, fresh, side_s, plain))
    return rows
