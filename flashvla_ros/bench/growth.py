"""How the cost of a step grows: ``python -m flashvla_ros.bench.growth``.

Times the plain model, dense and pruned decoding of this package with 64 to 1024 visual tokens and 7 to 32 action
dimensions, on random weights of the mid-size model, in turn within each round. (Cameras: OpenVLA sees one.)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from flashvla_ros.bench import device, models
from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.bench.configurations import DENSE, PLAIN
from flashvla_ros.bench.frames import load_observations
from flashvla_ros.bench.report import Row, times
from flashvla_ros.bench.rounds import Runner, measure
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.results import write_results
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.policy import OpenVLAPolicy
from flashvla_ros.vla.random_checkpoint import config_of_size

TOKENS = (64, 256, 484, 1024)
ACTIONS = (7, 14, 32)
PRUNED = "ics 62.5 % layer 2"
_PRUNING = {DENSE: PruningSettings(method="none"), PRUNED: PruningSettings()}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("tiny", "mid", "7b"), default="mid", help="of the model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (torch's default)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="squares of whole numbers")
    parser.add_argument("--actions", type=int, nargs="+", default=ACTIONS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    try:
        results = measure_growth(args)
        if args.json:
            write_results(args.json, results["meta"], results["rows"])
        if args.plot:
            draw(results, args.plot)
    except FlashVLAError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Return a row for each size and way to run it."""
    base, settings = config_of_size(args.size), ModelSettings(threads=args.threads)
    first = min(args.actions)
    points = [(tokens, first) for tokens in args.tokens] + [(256, actions) for actions in args.actions[1:]]
    rows: list[Row] = []
    for tokens, actions in points:
        policy = models.random_policy(_resized(base, tokens), settings, action_size=actions)
        for row in _timed(policy, args.rounds):
            rows.append(row | {"visual_tokens": tokens, "action_size": actions})
            print(f"{tokens:5d} tokens {actions:3d} dimensions  {row['name']:20s} {row['p50_ms']:9.1f} ms", flush=True)
    meta = {"command": "growth", **device.describe(policy.backend), "versions": device.versions(), "size": args.size}
    return {"meta": meta | {"rounds": args.rounds}, "rows": rows}


def _resized(config: OpenVLAConfig, tokens: int) -> OpenVLAConfig:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise FlashVLAError(f"{tokens} visual tokens are no square of patches: give squares such as 64, 256, 484, 1024")
    towers = tuple(dataclasses.replace(tower, image_size=side * tower.patch_size) for tower in config.towers)
    return dataclasses.replace(config, vision_backbone_id=f"{side}x{side}", towers=towers)


def _timed(policy: OpenVLAPolicy, rounds: int) -> list[Row]:
    plain = PlainPolicy(policy)
    runners: dict[str, Runner] = {PLAIN: lambda seen: plain.infer(seen, PruningSettings())}
    for name, pruning in _PRUNING.items():
        runners[name] = lambda seen, pruning=pruning: policy.infer(seen, pruning)
    observations = load_observations(models.INSTRUCTION)
    cpu = policy.backend.device.type == "cpu"
    series = measure(runners, observations, rounds, policy.backend.synchronize, lambda _: None, cpu=cpu)
    return [times(name, one, series[PLAIN]) for name, one in series.items()]


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot milliseconds against visual tokens, and against action dimensions at 256 tokens."""
    from matplotlib.figure import Figure

    rows = results["rows"]
    first = min(row["action_size"] for row in rows)
    panels = (
        ("visual tokens", "visual_tokens", [row for row in rows if row["action_size"] == first]),
        ("action dimensions", "action_size", [row for row in rows if row["visual_tokens"] == 256]),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (label, key, chosen) in zip(figure.subplots(1, 2), panels, strict=True):
        for name in (PLAIN, DENSE, PRUNED):
            line = [(row[key], row["p50_ms"]) for row in chosen if row["name"] == name]
            axes.plot(*zip(*line, strict=True), marker="o", label=name)
        axes.set(xlabel=label, ylabel="ms a step (median)", ylim=(0, None))
    axes.legend()
    figure.suptitle(f"{results['meta']['size']} on {results['meta']['device']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
