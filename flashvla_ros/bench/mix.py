"""The gated mix: what a step of a recorded run costs on average, at the times measured in this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashvla_ros.bench.configurations import DENSE, PLAIN, draft_name, paper_name
from flashvla_ros.bench.report import Row, mix_row
from flashvla_ros.bench.rounds import Series
from flashvla_ros.bench.trace import TraceStep
from flashvla_ros.core.types import FloatArray


def mixes(series: Mapping[str, Series], trace: Sequence[TraceStep], side_s: float) -> list[Row]:
    """Return a row for each mode of the trace and each way to run its fresh steps that was timed.

    Args:
        series: Name of a configuration to its rounds.
        trace: Decisions of one mode or several.
        side_s: Gate and publishing, paid at every step.
    """
    plain = series[PLAIN]
    first = plain.inferences[0]
    rows = []
    for mode in dict.fromkeys(step.mode for step in trace):
        steps = [step for step in trace if step.mode == mode]
        for name in (DENSE, paper_name(first.visual_tokens)):
            if name not in series:
                continue
            count = sum(step.fresh for step in steps)
            rows.append(mix_row(f"{mode} gate, {name}", steps, [series[name].array] * count, side_s, plain.array))
            accepted, refused = (series.get(draft_name(name, share)) for share in (1, 0))
            if accepted and refused:
                fresh = [
                    _drafted_s(step, first.tokens.size, series[name].array, accepted.array, refused.array)
                    for step in steps
                    if step.fresh
                ]
                rows.append(mix_row(f"{mode} gate, {name}, draft", steps, fresh, side_s, plain.array))
    return rows


def _drafted_s(step: TraceStep, size: int, greedy: FloatArray, accepted: FloatArray, refused: FloatArray) -> FloatArray:
    """[rounds] seconds of a fresh step with a draft, by the passes that it leaves to decoding.

    A draft of which a tokens are confirmed settles a + 1: the model's own choice is known in the place of the first
    wrong one. Each other token takes a pass, and all passes cost the same. Where the trace's actions have another
    number of tokens, the share that agreed is carried over.
    """
    if step.agreeing is None:
        return greedy
    settled = min(step.agreeing * size // step.tokens + 1, size)
    return accepted + (refused - accepted) * (size - settled) / max(size - 1, 1)
