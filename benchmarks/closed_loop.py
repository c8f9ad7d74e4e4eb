"""Does one ε serve every token budget where one δ does not? Calibration against fixed thresholds, in closed loop.

Each chain plays the same scenes in the same order, task after task and seed after seed, and carries what calibration
has learnt from episode to episode, from a cold start. At every reused step the model is asked too, for the count alone,
so *off* is what was executed and not what the audits estimate. ``coin`` is calibration whose λ is compared with a
random number in the place of angle and overlap: whatever it reuses, it reuses blindly. ``δ tuned`` is the fixed δ that
reused most on other scenes of the same policy and budget while at most ε of their steps were off; the strictest where
none was that good.

    python -m benchmarks.closed_loop --seeds 17 --ledger L.jsonl --json F.json

A chain that was stopped goes on at its next episode, as long as code, settings and checkpoint are the same. Rows that
the JSON file holds of other policies, budgets and gates stay there, so a campaign can be played in parts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

from benchmarks.calibration import finished
from benchmarks.digest import digest
from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name, read_results
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.evaluation.statistics import Paired, Rate, holm
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
ONLINE = {"gate.calibration": "online", "calibration.risk": RISK}
BLIND, TUNED = "coin", "δ tuned"
MODES: Mapping[str, Mapping[str, Any]] = {
    "δ 0.5": {},
    TUNED: {},
    BLIND: ONLINE,
    "online": ONLINE,
    "online, learning": {**ONLINE, "calibration.learning": 0.2},
}
DELTAS = (0.5, 0.6, 0.7, 0.8, 0.9)  # from the most permissive on
TUNING_SEEDS = range(1000, 1003)
Played = dict[str, Any]
Scene = tuple[int, str]  # seed and task
WorldOf = Callable[[int], World]


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


class Player:
    """Plays one episode after the other, and keeps what calibration has learnt. Close it.

    Args:
        settings: In force.
        known: The last episode that was played before; None: from a cold start.
        world_of: Makes the world for images of a size in pixels; it is closed too.
        blind: λ is compared with a random number; everything else is calibration's.
    """

    def __init__(
        self, settings: Settings, known: Played | None = None, world_of: WorldOf = World, *, blind: bool = False
    ) -> None:
        from flashvla_ros.vla.arch.table import load

        self._settings, self._blind = settings, blind
        self._policy = load(settings.model)
        self._stepper = Stepper(self._policy, ActionSpec.of(settings.action))
        self._world = world_of(self._policy.model.config.towers[0].image_size)
        if known is not None and known["state"]:
            state = CalibrationState.unpacked(known["state"], known["claim"])
            self._stepper.state = dataclasses.replace(self._stepper.state, calibration=state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._world.close()

    def play(self, chain: Sequence[Any], seed: int, task: str) -> Played:
        """Return an episode as a line of the ledger."""
        counter = Counter(self._policy, self._stepper, self._settings)
        tossed = itertools.count(10**9 + self._stepper.state.calibration.coins * 10**3)
        blind = mock.patch.object(calibration, "need", side_effect=lambda *_: calibration.coin(next(tossed)))
        with blind if self._blind else contextlib.nullcontext():
            outcome = roll_out(self._world, self._stepper, plan_episode(task, seed), self._settings, counter)
        state = self._stepper.state.calibration
        return {
            "chain": list(chain),
            "seed": seed,
            "task": task,
            "success": outcome.success,
            **{name: counter.counts[name] for name in ("steps", "reused", "off", "audits")},
            "permissiveness": state.permissiveness,
            "state": state.packed().tolist() if state.steps else [],
            "claim": state.claim,
            "device": processor_name(),
        }


class Ledger:
    """Episodes that were played, in a file of lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.episodes = list(finished(path))
        path.parent.mkdir(parents=True, exist_ok=True)

    def chain(self, chain: Sequence[Any], of: str, scenes: Iterable[Scene]) -> list[Played]:
        """Return the episodes of a chain from its first scene on, up to the first that is not there.

        `of` is the digest of what they were played with.
        """
        found = [one for one in self.episodes if one["chain"] == list(chain) and one.get("of") == of]
        known = {(one["seed"], one["task"]): one for one in found}
        return [known[scene] for scene in itertools.takewhile(known.__contains__, scenes)]

    def add(self, episode: Played) -> None:
        """Keep one."""
        self.episodes.append(episode)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(episode) + "\n")


def settings_of(policy: str, keep: float, values: Mapping[str, Any]) -> Settings:
    """Return the settings of a chain."""
    base = {"model.checkpoint": str(share_path("models", policy)), "model.threads": 1, "pruning.keep_ratio": keep}
    return Settings().with_values({**base, **values})


def scenes_of(seeds: Iterable[int]) -> list[Scene]:
    """Return the scenes of a chain: every task of a seed before the next seed."""
    return list(itertools.product(seeds, TASKS))


def extend(
    ledger: Ledger,
    chain: Sequence[Any],
    settings: Settings,
    scenes: Sequence[Scene],
    *,
    after: Played | None = None,
    world_of: WorldOf = World,
) -> list[Played]:
    """Play what the ledger does not hold of a chain, and return its scenes; it goes on from the episode `after`."""
    values = settings.values() | {"model.checkpoint": checkpoint_fingerprint(Path(settings.model.checkpoint))}
    before = [after[name] for name in ("of", "seed", "task")] if after else []
    of = digest(values, before, Counter, Player, world_of)
    known = ledger.chain(chain, of, scenes)
    if todo := scenes[len(known) :]:
        last = known[-1] if known else after
        with Player(settings, last, world_of, blind=chain[2] == BLIND) as player:
            for seed, task in todo:
                ledger.add({**player.play(chain, seed, task), "of": of})
    return ledger.chain(chain, of, scenes)


def totals(episodes: Iterable[Played]) -> dict[str, int]:
    """Add episodes up."""
    names, episodes = ("steps", "reused", "off", "audits", "success"), list(episodes)
    return {name: sum(one[name] for one in episodes) for name in names}


def tuned(ledger: Ledger, policy: str, keep: float) -> float:
    """Return the δ that reuses most on the scenes of tuning while at most ε of their steps are off."""
    for delta in DELTAS:
        settings = settings_of(policy, keep, {"gate.delta": delta})
        total = totals(extend(ledger, (policy, keep, f"tuning {delta:g}"), settings, scenes_of(TUNING_SEEDS)))
        if total["off"] <= RISK * total["steps"]:
            break
    return delta


def row_of(chain: tuple[str, float, str], episodes: list[Played], delta: float | None) -> dict[str, Any]:
    """Return what a chain came to, and its second half alone."""
    policy, keep, mode = chain
    late = totals(episodes[len(episodes) // 2 :])
    return {
        "policy": policy,
        "keep": keep,
        "mode": mode,
        "delta": delta,
        "episodes": len(episodes),
        **totals(episodes),
        "late": late,
        "permissiveness": episodes[-1]["permissiveness"] if "δ" not in mode else None,
        "successes": [episode["success"] for episode in episodes],
        "device": ", ".join(dict.fromkeys(episode["device"] for episode in episodes)),
        "seeds": len({episode["seed"] for episode in episodes}),
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the table; every gate is paired with calibration at the same policy and budget."""
    rows = results["rows"]
    compared = {(row["policy"], row["keep"]): row["successes"] for row in rows if row["mode"] == "online"}
    pairs = [
        Paired.of(compared[row["policy"], row["keep"]], row["successes"])
        if row["mode"] != "online" and len(compared.get((row["policy"], row["keep"]), ())) == row["episodes"]
        else None
        for row in rows
    ]
    adjusted = iter(holm([pair.mcnemar_p for pair in pairs if pair]))
    lines = []
    for row, pair in zip(rows, pairs, strict=True):
        late = row["late"]
        difference = "–"
        if pair:
            value, low, high = (100 * one for one in pair.difference(row["episodes"]))
            difference = f"{value:+.0f} ({low:+.0f} to {high:+.0f}), p = {next(adjusted):.2g}"
        lines.append(
            [
                row["policy"],
                f"{row['keep']:g}",
                row["mode"] if row["delta"] is None else f"{row['mode']}: {row['delta']:g}",
                str(Rate(row["success"], row["episodes"])),
                difference,
                *(f"{100 * row[name] / row['steps']:.1f} %" for name in ("reused", "audits", "off")),
                f"{100 * late['reused'] / late['steps']:.1f} %, {100 * late['off'] / late['steps']:.1f} %",
                f"{row['off'] / row['reused']:.0%}" if row["reused"] else "–",
                "" if row["permissiveness"] is None else f"{row['permissiveness']:.2f}",
            ]
        )
    head = ["policy", "kept", "gate", "success", "points against online", "reused", "audited", "off, of all steps"]
    head += ["reused and off, second half", "off, of the reused", "last λ"]
    made = results["meta"]
    devices = dict.fromkeys(row.get("device", made["device"]) for row in rows)
    return f"{', '.join(devices)}; ε = {made['risk']:g}; shares of control steps.\n\n{table(head, lines)}"


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
        ledger, known = Ledger(args.ledger), []
        if args.json and args.json.exists():
            before = read_results(args.json)
            older = {name: before["meta"][name] for name in ("device", "seeds")}  # of rows that do not say their own
            known = [older | row for row in before["rows"]]
        rows = {(row["policy"], row["keep"], row["mode"]): row for row in known}
        for chain in itertools.product(args.policies, args.keep, args.modes):
            policy, keep, mode = chain
            delta = tuned(ledger, policy, keep) if mode == TUNED else None
            settings = settings_of(policy, keep, MODES[mode] if delta is None else {"gate.delta": delta})
            rows[chain] = row_of(chain, extend(ledger, chain, settings, scenes_of(range(args.seeds))), delta)
        made = meta(processor_name(), command="closed_loop", risk=RISK, seeds=args.seeds)
        order = sorted(rows, key=lambda chain: (chain[0], -chain[1], list(MODES).index(chain[2])))
        publish(page, made, [rows[chain] for chain in order], args.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
