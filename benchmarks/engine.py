"""What do engine, type, threads and memory format cost on this CPU? ``python -m benchmarks.engine``.

Every variant runs the same steps in one process, in turn with the first (eager, float32, one thread), each round
beginning with another one. On a busy machine the ratio by processor time is the steadier, but it counts the time of
every thread, so that two of them can only lose by it. ``flashvla-ros bench`` has percentiles, intervals and GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import table
from flashvla_ros.bench import models
from flashvla_ros.bench.command import ms
from flashvla_ros.bench.measure import describe_backend
from flashvla_ros.bench.rounds import Runner, Speedup, time_in_turn
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, Inference, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.engine import lean

_DENSE, _PRUNED = PruningSettings(method="none"), PruningSettings(method="ics", keep_ratio=0.625, layer=2)
_STEPS = {"dense": (_DENSE, False), "ics 62.5 % layer 2": (_PRUNED, False), "dense, draft accepted": (_DENSE, True)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a step.

    Attributes:
        engine: ``model.engine``.
        dtype: ``model.dtype``.
        threads: Of torch.
        channels_last: Weights of the patch embedding in that memory format.
        rows: Weights of the decoder as they are stored, none of them by columns.
    """

    engine: str
    dtype: str = "float32"
    threads: int = 1
    channels_last: bool = False
    rows: bool = False

    @property
    def name(self) -> str:
        """In tables."""
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        format_ = ", channels-last" if self.channels_last else ", weights in rows" if self.rows else ""
        return f"{self.engine}, {self.dtype}{threads}{format_}"

    def load(self, model: str) -> OpenVLAPolicy:
        """Return the policy."""
        settings = ModelSettings(device="cpu", dtype=self.dtype, engine=self.engine, threads=1)
        most, lean.MOST_INPUTS = lean.MOST_INPUTS, 0 if self.rows else lean.MOST_INPUTS
        policy = models.load_subject(model, settings)
        lean.MOST_INPUTS = most
        if self.channels_last:
            policy.model.towers.to(memory_format=torch.channels_last)
        return policy


VARIANTS = (
    Variant("eager"),
    Variant("static"),
    Variant("static", rows=True),
    Variant("static", channels_last=True),
    Variant("static", threads=2),
    Variant("eager", "bfloat16"),
    Variant("static", "bfloat16"),
    Variant("static", "bfloat16", threads=2),
    Variant("compiled"),
)


def load_all(model: str, variants: Sequence[Variant]) -> tuple[dict[Variant, OpenVLAPolicy], dict[Variant, float]]:
    """Return a policy for each variant, one for those that differ by threads alone, and what its first steps took."""
    policies: dict[Variant, OpenVLAPolicy] = {}
    first_s: dict[Variant, float] = {}
    for variant in variants:
        twin = next((one for one in policies if dataclasses.replace(one, threads=variant.threads) == variant), None)
        policies[variant] = policies[twin] if twin else variant.load(model)
        started_s = time.perf_counter()
        for pruning, _ in _STEPS.values():
            policies[variant].infer(Request(_observation(), pruning))
        first_s[variant] = time.perf_counter() - started_s
    return policies, first_s


def _observation() -> Observation:
    return load_observations(models.INSTRUCTION)[0]


def measure_all(model: str, variants: Sequence[Variant], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each kind of step and each variant; ratios are to the first."""
    policies, first_s = load_all(model, variants)
    for kind, (pruning, drafted) in _STEPS.items():
        runners = {variant.name: _runner(policy, variant, pruning, drafted) for variant, policy in policies.items()}
        series = time_in_turn(runners, [_observation()], rounds, lambda: None, lambda _: None, cpu=True)
        base = series[variants[0].name]
        for variant in variants:
            one = series[variant.name]
            stages = {f"{name}_ms": 1e3 * float(statistics.median(part)) for name, part in one.stages().items()}
            cpu = [first / second for first, second in zip(base.cpu_seconds, one.cpu_seconds, strict=True)]
            yield {
                "name": kind,
                "variant": variant.name,
                "p50_ms": 1e3 * statistics.median(one.seconds),
                "cpu_p50_ms": 1e3 * statistics.median(one.cpu_seconds),
                "speedup": Speedup.of(base.array, one.array).median,
                "cpu_speedup": statistics.median(cpu),
                "first_s": first_s[variant],
                **stages,
            }


def _runner(policy: OpenVLAPolicy, variant: Variant, pruning: PruningSettings, drafted: bool) -> Runner:
    draft = Draft(policy.infer(Request(_observation(), pruning)).tokens) if drafted else None

    def run(seen: Observation) -> Inference:
        torch.set_num_threads(variant.threads)
        return policy.infer(Request(seen, pruning, draft=draft))

    return run


def page(results: Mapping[str, Any]) -> str:
    """Return each kind of step in each variant, with its ratio to the first by processor time and by the clock."""
    run, lines = results["meta"], []
    for row in results["rows"]:
        by_cpu = ms(row["cpu_p50_ms"]), f"**{row['cpu_speedup']:.2f}**"
        by_clock = ms(row["p50_ms"]), f"{row['speedup']:.2f}"
        lines.append([row["name"], row["variant"], *by_cpu, *by_clock, f"{row['first_s']:.1f}"])
    head = ["step", "variant", "processor time [ms]", "ratio", "clock [ms]", "ratio", "first steps [s]"]
    words = f"{run['model']} on {run['device']}; torch {run['versions']['torch']}; {run['rounds']} rounds; medians."
    return f"{words}\n\n{table(head, lines)}"


def main() -> int:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=models.DEMO, help="demo, mid or a checkpoint folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps a cell (default: %(default)s)")
    parser.add_argument("--skip", nargs="*", default=[], metavar="WORD", help="variants that hold a word: compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()

    def work() -> None:
        variants = [one for one in VARIANTS if not any(word in one.name for word in options.skip)]
        rows = []
        for row in measure_all(options.model, variants, options.rounds):
            rows.append(row)
            print(f"{row['name']:22s} {row['variant']:32s} {row['p50_ms']:8.1f} ms  {row['speedup']:.2f}", flush=True)
        backend = Variant("static").load(options.model).backend
        made = meta(**describe_backend(backend), command="engine", model=options.model, rounds=options.rounds)
        for differs in ("dtype", "engine", "threads"):
            made.pop(differs)
        print("\n" + page({"meta": made, "rows": rows}))
        if options.json:
            write_results(options.json, made, rows)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
