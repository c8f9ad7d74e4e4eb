"""Does one ε serve every token budget where one δ does not? Calibration against fixed thresholds, in closed loop.

Each chain plays the same scenes in the same order, task after task and seed after seed, and carries what calibration
has learnt from episode to episode, from a cold start. At every reused step the model is asked too, for the count alone,
so *off* is what was executed and not what the audits estimate. ``coin`` is calibration whose λ is compared with a
random number in the place of angle and overlap: whatever it reuses, it reuses blindly.

    python -m benchmarks.closed_loop --seeds 17 --ledger L.jsonl --json F.json

A chain that was stopped goes on at its next episode.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.calibration import finished
from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.evaluation.statistics import Rate
from flashvla_ros.gate import calibration
from flashvla_ros.gate.calibration import CalibrationState, Trial, is_off
from flashvla_ros.gate.memory import FreshResult, GateInput
from flashvla_ros.sim.perturbation import plan_episode
from flashvla_ros.sim.rollout import roll_out
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.sim.world import World

POLICIES = ("demo", "demo-plain")
KEEP = (0.75, 0.625, 0.5, 0.375, 0.25)
RISK = 0.05
_ONLINE = {"gate.calibration": "online", "calibration.risk": RISK}
MODES: Mapping[str, Mapping[str, Any]] = {
    "δ 0.3": {"gate.delta": 0.3},
    "δ 0.5": {},
    "δ 0.7": {"gate.delta": 0.7},
    "coin": _ONLINE,
    "online": _ONLINE,
    "online, learning": {**_ONLINE, "calibration.learning": 0.2},
}


class Counter:
    """Sees every control step of an episode, and asks the model where the gate did not.

    Attributes:
        counts: Steps, reused ones, those of them that were off, and audits.
    """

    def __init__(self, policy: Policy, stepper: Stepper, settings: Settings) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._policy, self._stepper, self._settings = policy, stepper, settings

    def __call__(self, result: StepResult) -> None:
        """Count a step."""
        self.counts["steps"] += 1
        self.counts["audits"] += result.decision.reason is Reason.AUDIT
        if result.decision.reason is not Reason.REUSE:
            return
        self.counts["reused"] += 1
        settings, seen = self._settings, result.observation
        inference = self._policy.infer(Request(seen, settings.pruning))
        fresh = FreshResult.of(inference, GateInput.of(seen), self._stepper.spec, settings.pruning)
        repeated = Trial(0.0, Reason.REUSE, counted=True, candidate=self._stepper.state.memory.last)
        self.counts["off"] += is_off(repeated, fresh, settings)


def settings_of(policy: str, keep: float, mode: str) -> Settings:
    """Return the settings of a chain; λ moves by the rule of the gate, whatever it is compared with."""
    values = {"model.checkpoint": str(share_path("models", policy)), "model.threads": 1, "pruning.keep_ratio": keep}
    return Settings().with_values({**values, **MODES[mode]})


def play(policy_name: str, keep: float, mode: str, seeds: int, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the episodes of one chain that `known`, its first ones, does not have."""
    todo = list(itertools.product(range(seeds), TASKS))[len(known) :]
    if not todo:
        return
    from flashvla_ros.vla.arch.table import load

    settings = settings_of(policy_name, keep, mode)
    policy = load(settings.model)
    stepper = Stepper(policy, ActionSpec.of(settings.action))
    if known:
        state = CalibrationState.unpacked(known[-1]["state"], known[-1]["claim"])
        stepper.state = dataclasses.replace(stepper.state, calibration=state)
    need, tossed = calibration.need, itertools.count(10**9 + len(known) * 10**4)
    if mode == "coin":
        calibration.need = lambda *_: calibration.coin(next(tossed))
    world = World(image_size=policy.model.config.towers[0].image_size)
    try:
        for seed, task in todo:
            counter = Counter(policy, stepper, settings)
            outcome = roll_out(world, stepper, plan_episode(task, seed), settings, counter)
            state = stepper.state.calibration
            yield {
                "chain": [policy_name, keep, mode],
                "seed": seed,
                "task": task,
                "success": outcome.success,
                **{name: counter.counts[name] for name in ("steps", "reused", "off", "audits")},
                "permissiveness": state.permissiveness,
                "state": state.packed().tolist(),
                "claim": state.claim,
            }
    finally:
        calibration.need = need
        world.close()


def rows_of(played: list[dict[str, Any]], seeds: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each chain that is whole."""
    chains: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for episode in played:
        chains[tuple(episode["chain"])].append(episode)
    for (policy, keep, mode), episodes in sorted(chains.items(), key=lambda item: (item[0][0], -item[0][1])):
        if len(episodes) < seeds * len(TASKS):
            continue
        total = {name: sum(one[name] for one in episodes) for name in ("steps", "reused", "off", "audits", "success")}
        last = episodes[-1]["permissiveness"] if "δ" not in mode else None
        yield {"policy": policy, "keep": keep, "mode": mode, "episodes": len(episodes), **total, "permissiveness": last}


def page(results: Mapping[str, Any]) -> str:
    """Return the table."""
    lines = []
    for row in results["rows"]:
        success, steps = Rate(row["success"], row["episodes"]), row["steps"]
        low, high = success.interval
        lines.append(
            [
                row["policy"],
                f"{row['keep']:g}",
                row["mode"],
                f"{row['success']}/{row['episodes']} ({100 * low:.0f}-{100 * high:.0f} %)",
                *(f"{100 * row[name] / steps:.1f} %" for name in ("reused", "audits", "off")),
                f"{row['off'] / row['reused']:.0%}" if row["reused"] else "–",
                "" if row["permissiveness"] is None else f"{row['permissiveness']:.2f}",
            ]
        )
    head = [
        "policy",
        "kept",
        "gate",
        "success",
        "reused",
        "audited",
        "off, of all steps",
        "off, of the reused",
        "last λ",
    ]
    made = results["meta"]
    return f"{made['device']}; ε = {made['risk']:g}; shares of control steps.\n\n{table(head, lines)}"


def main() -> int:
    """Play what the ledger does not hold, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=17, help="of each task (%(default)s)")
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES, help="(%(default)s)")
    parser.add_argument("--keep", nargs="+", type=float, default=KEEP, help="pruning.keep_ratio (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=tuple(MODES), choices=MODES, help="(%(default)s)")
    parser.add_argument("--ledger", type=Path, default=Path("closed_loop.jsonl"), help="episodes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()

    def work() -> None:
        played = list(finished(args.ledger))
        args.ledger.parent.mkdir(parents=True, exist_ok=True)
        with args.ledger.open("a", encoding="utf-8") as stream:
            for chain in itertools.product(args.policies, args.keep, args.modes):
                known = [episode for episode in played if tuple(episode["chain"]) == chain]
                for episode in play(*chain, args.seeds, known):
                    stream.write(json.dumps(episode) + "\n")
                    stream.flush()
                    played.append(episode)
        made = meta(processor_name(), command="closed_loop", risk=RISK, seeds=args.seeds)
        publish(page, made, list(rows_of(played, args.seeds)), args.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
