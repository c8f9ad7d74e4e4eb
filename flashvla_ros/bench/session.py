"""One run of ``flashvla-ros bench``: load, check against the plain model, time in turn, count, and report."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from flashvla_ros.bench import device, models
from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.bench.configurations import DENSE, EAGER, PLAIN, Configuration, select, table
from flashvla_ros.bench.frames import load_observations
from flashvla_ros.bench.mix import mixes
from flashvla_ros.bench.report import Row, model_row, side_row
from flashvla_ros.bench.reuse import gate_seconds, publish_seconds
from flashvla_ros.bench.roofline import Prober, Roofline
from flashvla_ros.bench.rounds import Runner, Series, measure
from flashvla_ros.bench.trace import TraceStep, read_trace, relative
from flashvla_ros.bench.work import Work, count_stages
from flashvla_ros.core.settings import PruningSettings, Settings, find
from flashvla_ros.core.types import Draft, Inference, IntArray, Observation
from flashvla_ros.vla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning.select import METHODS

_FRAMES = 2
_PROGRESS_S = 0.5 if sys.stderr.isatty() else 10.0
_MODEL = ("device", "dtype", "attention", "engine", "threads")  # parameters that are options too


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark that the command line asks for and return its results."""
    overrides = {f"model.{name}": getattr(args, name) for name in _MODEL}
    settings = Settings().with_values({name: find(name).parse(value) for name, value in overrides.items()})
    policy = models.load_subject(args.model, settings.model)
    trace = read_trace(args.trace)
    rows = select(table(policy.visual_tokens), args.only)
    observations = load_observations(models.INSTRUCTION)[:_FRAMES]
    return Session(policy, settings, rows, trace, observations).run(args)


def _eager(policy: OpenVLAPolicy) -> OpenVLAPolicy:
    """Return the same model on the plain engine: transformers' modules, the reference of the others."""
    if policy.backend.engine == "eager":
        return policy
    backend = dataclasses.replace(policy.backend, engine="eager")
    return OpenVLAPolicy(policy.model, policy.processor, policy.prompts, policy.codec, backend)


class Session:
    """Everything that one run shares.

    Args:
        policy: What is measured.
        settings: What every configuration starts from.
        rows: Configurations to time beside the plain model.
        trace: Decisions to mix by.
        observations: Frames; each round sees one of them.
    """

    def __init__(
        self,
        policy: OpenVLAPolicy,
        settings: Settings,
        rows: Sequence[Configuration],
        trace: Sequence[TraceStep],
        observations: Sequence[Observation],
    ) -> None:
        self.policy = policy
        self.settings = settings
        self.rows = list(rows)
        self.trace = trace
        self.observations = observations
        self.plain = PlainPolicy(policy)
        self.eager = _eager(policy)
        self.roofline = Roofline()
        self._memory: list[int] = []
        self._tokens: dict[tuple[float, PruningSettings], IntArray] = {}

    def run(self, args: argparse.Namespace) -> dict[str, Any]:
        """Measure and return ``{"meta": …, "rows": …}``."""
        load_before = os.getloadavg()[0]
        # Warms up, as counting does the others; the static engine moves the weights in its first step.
        for policy in (self.plain, self.eager, self.policy):
            policy.infer(self.observations[0], self.settings.pruning)
        counted = tqdm(self.rows, desc="counting", unit="configuration", mininterval=_PROGRESS_S)
        works = {row.name: self._work(row) for row in counted}
        series = self._timed(args.rounds, args.seconds or math.inf)
        equal = self._check_tokens(series)
        first = series[self.rows[0].name].inferences[0]
        gate = gate_seconds(self.observations, first, self.rows[0].settings(self.settings))
        publish, obstacle = publish_seconds()
        side_s = float(np.median(gate)) + (0.0 if publish is None else float(np.median(publish)))
        plain = series[PLAIN]
        rows = [model_row(name, one, plain, works.get(name, {}), self.roofline) for name, one in series.items()]
        rows += mixes(series, self.trace, side_s)
        meta = {
            "command": "bench",
            **device.describe(self.policy.backend),
            "versions": device.versions(),
            "model": args.model,
            "sizes": models.describe(self.policy),
            "rounds": len(plain.seconds),
            "load": [load_before, os.getloadavg()[0]],
            "note": args.note,
            "tokens_equal_plain": equal,
            "roofline": vars(self.roofline),
            "gate": side_row(gate),
            "publish": side_row(publish) if publish is not None else {"not_measured": obstacle},
            "trace": {"file": relative(args.trace), "steps": len(self.trace)},
            "memory": self._memory_row(),
        }
        return {"meta": meta, "rows": rows}

    def _timed(self, rounds: int, limit_s: float) -> dict[str, Series]:
        backend = self.policy.backend
        prober = Prober(backend)
        with tqdm(total=rounds, desc="timing", unit="round", mininterval=_PROGRESS_S) as bar:

            def after_round(_number: int) -> None:
                prober.probe(self.roofline)
                self._memory.append(device.allocated_bytes(backend))
                bar.update()

            return measure(
                self._runners(),
                self.observations,
                rounds,
                backend.synchronize,
                after_round,
                cpu=backend.device.type == "cpu",
                limit_s=limit_s,
                warm_up=0 if backend.device.type == "cpu" else 1,
            )

    def _runners(self) -> dict[str, Runner]:
        runners: dict[str, Runner] = {PLAIN: lambda seen: self.plain.infer(seen, self.settings.pruning)}
        dense = next((row for row in self.rows if row.name == DENSE), None)
        if dense is not None and self.eager is not self.policy:
            pruning = dense.settings(self.settings).pruning
            runners[EAGER] = lambda seen: self.eager.infer(seen, pruning)
        return runners | {row.name: self._runner(row) for row in self.rows}

    def _runner(self, row: Configuration, policy: OpenVLAPolicy | None = None) -> Runner:
        """Return what runs one step of a configuration; each step follows on that of the round before."""
        policy = policy or self.policy
        pruning = row.settings(self.settings).pruning
        previous: Inference | None = None

        def run(seen: Observation) -> Inference:
            nonlocal previous
            previous = policy.infer(seen, pruning, previous, drafts.get(seen.stamp_s))
            return previous

        drafts = {} if row.draft is None else self._drafts(pruning, row.draft)
        return run

    def _drafts(self, pruning: PruningSettings, share: int) -> dict[float, Draft]:
        """Return a draft for each frame: the tokens that the model itself decodes, or others from the first on."""
        drafts = {}
        for seen in self.observations:
            tokens = self._decoded(seen, pruning)
            drafts[seen.stamp_s] = Draft(tokens if share else tokens - 1, accept_bins=0, max_near=0)
        return drafts

    def _decoded(self, seen: Observation, pruning: PruningSettings) -> IntArray:
        known = (seen.stamp_s, pruning)
        if known not in self._tokens:
            self._tokens[known] = self.policy.infer(seen, pruning).tokens
        return self._tokens[known]

    def _check_tokens(self, series: Mapping[str, Series]) -> str:
        """Hold the dense path to the plain one, round by round; say in how many rounds the tokens were equal."""
        if DENSE not in series:
            return "not checked: dense was left out"
        pairs = list(zip(series[PLAIN].inferences, series[DENSE].inferences, strict=True))
        equal = 0
        for number, (plain, dense) in enumerate(pairs):
            seen = self.observations[number % len(self.observations)]
            equal += np.array_equal(plain.tokens, dense.tokens) or self.plain.check(seen, dense.tokens, DENSE)
        return f"{equal} of {len(pairs)} rounds"

    def _work(self, row: Configuration) -> dict[str, Work]:
        """Count one inference, which on the CPU warms the configuration up; on a GPU no graph may hide its work."""
        policy = self.policy if self.policy.backend.device.type == "cpu" else self.eager
        run = self._runner(row, policy)
        pruning = row.settings(self.settings).pruning
        if pruning.method in METHODS and METHODS[pruning.method].needs_frame:
            run(self.observations[0])
        return count_stages(policy, lambda: run(self.observations[1]))

    def _memory_row(self) -> Row:
        """Peak, and growth over the second half of the rounds: by then allocators have what they will keep."""
        half = self._memory[len(self._memory) // 2 :]
        return {
            "peak_bytes": device.peak_bytes(self.policy.backend),
            "growth_bytes": half[-1] - half[0],
            "steps": (len(self.rows) + 1) * (len(half) - 1),
        }
