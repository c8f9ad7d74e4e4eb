"""One run of ``flashvla-ros bench``: load, check against the plain model, time in turn, count, and make rows."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from flashvla_ros.bench import measure, models
from flashvla_ros.bench.baselines import DensePolicy, PlainPolicy
from flashvla_ros.bench.configurations import DENSE, EAGER, Configuration, draft_name, paper_name, select, table
from flashvla_ros.bench.energy import energy_counter, joules_a_step
from flashvla_ros.bench.rounds import Row, Runner, Series, Speedup, model_row, step_row, time_in_turn
from flashvla_ros.bench.trace import TraceStep, load_observations, read_trace, relative
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.cli.results import meta
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings, Settings, find
from flashvla_ros.core.types import Draft, FloatArray, Inference, IntArray, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.step import VLAPolicy

_FRAMES = 2
_MODEL = ("device", "dtype", "attention", "engine", "threads")  # parameters that are options too


def settings_of(args: argparse.Namespace, base: Settings = Settings()) -> Settings:  # noqa: B008 - immutable
    """Return `base` with what the command line says; options that are not given change nothing."""
    overrides = {f"model.{name}": getattr(args, name) for name in _MODEL}
    options = {name: find(name).parse(value) for name, value in overrides.items() if value is not None}
    changed = parse_overrides(args.set)
    if "model.checkpoint" in changed:
        raise SettingsError("model.checkpoint has no part in --set: give the folder to --model")
    return base.with_values({**options, **changed})


def seen_by(policy: VLAPolicy, observation: Observation) -> Observation:
    """Return an observation with as many cameras and as much of the robot's state as the policy is told of."""
    (image,) = observation.images.values()
    images = {f"camera_{number}": image for number in range(policy.cameras)}
    return dataclasses.replace(observation, images=images, joint_positions=dict.fromkeys(policy.state_names, 0.0))


class Session:
    """Everything that one run of the command shares."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.settings = args, settings_of(args)
        self.policy = policy = models.load_subject(args.model, self.settings.model)
        self.trace = read_trace(args.trace)
        self.rows = select(table(policy.visual_tokens, drafts=policy.decoded > 0), args.only)
        # Each round sees one of them.
        self.observations = [seen_by(policy, seen) for seen in load_observations(models.INSTRUCTION)[:_FRAMES]]
        self.eager = policy.reference()
        self.plain = PlainPolicy(policy) if isinstance(policy, OpenVLAPolicy) else DensePolicy(self.eager)
        self.roofline = measure.Roofline()
        self._memory: list[int] = []
        self._tokens: dict[tuple[float, PruningSettings], IntArray] = {}

    def run(self) -> dict[str, Any]:
        """Measure and return ``{"meta": …, "rows": …}``."""
        args = self._args
        load_before = os.getloadavg()[0]
        # Warms up, as counting does the others; the static engine moves the weights in its first step.
        for policy in (self.plain, self.eager, self.policy):
            policy.infer(Request(self.observations[0], self.settings.pruning))
        counted = tqdm(self.rows, desc="counting", unit="configuration", mininterval=INTERVAL_S)
        works = {row.name: self._work(row) for row in counted}
        series = self._timed(args.rounds, args.seconds or math.inf)
        equal = self._check_tokens(series)
        first = series[self.rows[0].name].inferences[0]
        gate = measure.gate_seconds(self.observations, first, self.settings.with_values(self.rows[0].values))
        gate_p50, gate_p95 = np.percentile(1e3 * gate, (50, 95))
        plain = series[self.plain.name]
        rows = [model_row(name, one, plain, works.get(name, {}), self.roofline) for name, one in series.items()]
        self._add_energy(rows)
        rows += mixes(series, self.trace, float(np.median(gate)))
        made = meta(
            **measure.describe_backend(self.policy.backend),
            command="bench",
            model=args.model,
            sizes=models.describe(self.policy),
            rounds=len(plain.seconds),
            load=[load_before, os.getloadavg()[0]],
            note=args.note,
            tokens_equal_plain=equal,
            roofline=vars(self.roofline),
            gate={"p50_ms": gate_p50, "p95_ms": gate_p95, "repeats": len(gate)},
            trace={"file": relative(args.trace), "steps": len(self.trace)},
            memory=self._memory_row(len(series)),
        )
        return {"meta": made, "rows": rows}

    def _timed(self, rounds: int, limit_s: float) -> dict[str, Series]:
        backend = self.policy.backend
        prober = measure.Prober(backend)
        with tqdm(total=rounds, desc="timing", unit="round", mininterval=INTERVAL_S) as bar:

            def after_round(_number: int) -> None:
                prober.probe(self.roofline)
                self._memory.append(measure.allocated_bytes(backend))
                bar.update()

            return time_in_turn(
                self._runners(),
                self.observations,
                rounds,
                backend.synchronize,
                after_round,
                cpu=backend.device.type == "cpu",
                limit_s=limit_s,
                warm_up=0,
            )

    def _runners(self) -> dict[str, Runner]:
        runners: dict[str, Runner] = {
            self.plain.name: lambda seen: self.plain.infer(Request(seen, self.settings.pruning))
        }
        dense = next((row for row in self.rows if row.name == DENSE), None)
        if dense is not None and self.eager is not self.policy and isinstance(self.plain, PlainPolicy):
            pruning = self.settings.with_values(dense.values).pruning
            runners[EAGER] = lambda seen: self.eager.infer(Request(seen, pruning))
        return runners | {row.name: self._runner(row) for row in self.rows}

    def _runner(self, row: Configuration) -> Runner:
        """Return what runs one step of a configuration; each step follows on that of the round before."""
        pruning = self.settings.with_values(row.values).pruning
        previous: Inference | None = None

        def run(seen: Observation) -> Inference:
            nonlocal previous
            previous = self.policy.infer(Request(seen, pruning, previous, drafts.get(seen.stamp_s)))
            return previous

        drafts = self._drafts(pruning, row.draft)
        return run

    def _drafts(self, pruning: PruningSettings, share: int | None) -> dict[float, Draft]:
        """Return a draft for each frame: the tokens that the model itself decodes, or others from the first on."""
        drafts: dict[float, Draft] = {}
        if share is None:
            return drafts
        for seen in self.observations:
            tokens = self._decoded(seen, pruning)
            drafts[seen.stamp_s] = Draft(tokens if share else tokens - 1, accept_bins=0, max_near=0)
        return drafts

    def _decoded(self, seen: Observation, pruning: PruningSettings) -> IntArray:
        known = (seen.stamp_s, pruning)
        if known not in self._tokens:
            self._tokens[known] = self.policy.infer(Request(seen, pruning)).tokens
        return self._tokens[known]

    def _check_tokens(self, series: Mapping[str, Series]) -> str:
        """Hold the dense path to the plain one, round by round; say in how many rounds the tokens were equal."""
        if DENSE not in series:
            return "not checked: dense was left out"
        pairs = list(zip(series[self.plain.name].inferences, series[DENSE].inferences, strict=True))
        equal = 0
        for number, (plain, dense) in enumerate(pairs):
            seen = self.observations[number % len(self.observations)]
            equal += np.array_equal(plain.tokens, dense.tokens) or self.plain.check(seen, dense.tokens, DENSE)
        return f"{equal} of {len(pairs)} rounds"

    def _work(self, row: Configuration) -> dict[str, measure.Work]:
        """Count one inference, which on the CPU warms the configuration up; on a GPU no graph may hide its work."""
        policy = self.policy if self.policy.backend.device.type == "cpu" else self.eager
        pruning, previous = self.settings.with_values(row.values).pruning, None
        before, seen = self.observations[:2]
        if pruning.method in METHODS and METHODS[pruning.method].needs_frame:
            previous = policy.infer(Request(before, pruning))
        draft = self._drafts(pruning, row.draft).get(seen.stamp_s)
        return measure.count_stages(policy, Request(seen, pruning, previous, draft))

    def _add_energy(self, rows: Sequence[Row]) -> None:
        """Add the joules of a step to the rows, where the device counts them."""
        backend, runners = self.policy.backend, self._runners()
        if (counter := energy_counter(backend.device)) is not None:
            for row in rows:
                run = functools.partial(runners[row["name"]], self.observations[0])
                row["joules"] = joules_a_step(run, counter, backend.synchronize)

    def _memory_row(self, steps: int) -> Row:
        """Peak, and growth over the second half of the rounds of so many steps: by then allocators are warm."""
        half = self._memory[len(self._memory) // 2 :]
        return {
            "peak_bytes": measure.peak_bytes(self.policy.backend),
            "growth_bytes": half[-1] - half[0],
            "steps": steps * (len(half) - 1),
        }


def mix_row(
    name: str, trace: Sequence[TraceStep], fresh: Sequence[FloatArray], gate_s: float, plain: FloatArray
) -> Row:
    """Return the row of a gated run: every step of a trace takes the time that its kind took in this run.

    `fresh` has an array of [rounds] seconds for each fresh step of the trace, and `plain` [rounds] of the baseline,
    which has no gate; every other step pays for the gate.
    """
    rounds = len(plain)
    infer = np.stack(fresh) + gate_s  # [fresh steps, rounds]
    reused = len(trace) - len(infer)
    mean = (infer.sum(axis=0) + reused * gate_s) / len(trace)  # [rounds]
    steps = np.concatenate([infer.ravel(), np.full(reused * rounds, gate_s)])
    # The mean is over the trace; of the rounds' means the median, as one round may be disturbed.
    row = step_row(name, steps, float(np.median(mean)), Speedup.of(plain, mean))
    return row | {"steps": len(trace), "reuse_rate": reused / len(trace)}


def mixes(series: Mapping[str, Series], trace: Sequence[TraceStep], gate_s: float) -> list[Row]:
    """Return a row for each mode of the trace and each way to run its fresh steps; the first series is the baseline."""
    plain = next(iter(series.values()))
    first = plain.inferences[0]
    rows = []
    for mode in dict.fromkeys(step.mode for step in trace):
        steps = [step for step in trace if step.mode == mode]
        for name in (DENSE, paper_name(first.visual_tokens)):
            if name not in series:
                continue
            count = sum(step.fresh for step in steps)
            rows.append(mix_row(f"{mode} gate, {name}", steps, [series[name].array] * count, gate_s, plain.array))
            accepted, refused = (series.get(draft_name(name, share)) for share in (1, 0))
            if accepted and refused:
                fresh = [
                    _drafted_s(step, first.tokens.size, series[name].array, accepted.array, refused.array)
                    for step in steps
                    if step.fresh
                ]
                rows.append(mix_row(f"{mode} gate, {name}, draft", steps, fresh, gate_s, plain.array))
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
