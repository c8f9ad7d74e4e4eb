"""How does the cost of a step grow with tokens, cameras and action dimensions? ``python -m benchmarks.growth``.

Times the plain model, dense and pruned decoding of this package on random weights, in turn within each round, with 64
to 1024 visual tokens of one image, 1 to 4 cameras of 256 visual tokens each, and 7 to 32 action dimensions. With C
cameras the towers see a batch of C images and the decoder their visual tokens one after the other, as in OpenVLA-OFT;
each action dimension is one more token to decode, as in OpenVLA.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.tables import table
from flashvla_ros.bench import models
from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.bench.command import ms
from flashvla_ros.bench.configurations import DENSE, PLAIN
from flashvla_ros.bench.measure import describe_backend
from flashvla_ros.bench.rounds import Row, Runner, time_in_turn, times
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.random_checkpoint import config_of_size

TOKENS = (64, 256, 484, 1024)
CAMERAS = (1, 2, 3, 4)
ACTIONS = (7, 14, 32)
PRUNED = "ics 62.5 % layer 2"
_PRUNING = {DENSE: PruningSettings(method="none"), PRUNED: PruningSettings(method="ics", keep_ratio=0.625, layer=2)}


class Point(NamedTuple):
    """A size of the problem.

    Attributes:
        tokens: Visual tokens of one image.
        cameras: Images of an observation.
        actions: Dimensions of an action.
    """

    tokens: int
    cameras: int
    actions: int

    def config(self, base: OpenVLAConfig) -> OpenVLAConfig:
        """Return `base` with this many visual tokens and images."""
        side = math.isqrt(self.tokens)
        if side * side != self.tokens:
            raise FlashVLAError(
                f"{self.tokens} visual tokens are no square of patches: give squares such as 64, 256, 484, 1024"
            )
        towers = tuple(dataclasses.replace(tower, image_size=side * tower.patch_size) for tower in base.towers)
        name = f"{side}x{side}"
        return dataclasses.replace(base, vision_backbone_id=name, towers=towers, num_images_in_input=self.cameras)


def points(tokens: list[int], cameras: list[int], actions: list[int]) -> list[Point]:
    """Return one point for each value of each list, the other two at their middle: 256, one and the fewest."""
    middle = Point(256 if 256 in tokens else min(tokens), min(cameras), min(actions))
    lines = [middle._replace(tokens=value) for value in tokens]
    lines += [middle._replace(cameras=value) for value in cameras]
    lines += [middle._replace(actions=value) for value in actions]
    return list(dict.fromkeys(lines))


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "mid", "7b"), default="mid", help="of the model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each point (%(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all; at least two rounds are timed")
    parser.add_argument("--device", default="auto", help="torch device (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (torch's default)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of one image: squares of whole numbers")
    parser.add_argument("--cameras", type=int, nargs="+", default=CAMERAS)
    parser.add_argument("--actions", type=int, nargs="+", default=ACTIONS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    args = parser.parse_args()

    def work() -> None:
        results = measure_growth(args)
        if args.json:
            write_results(args.json, results["meta"], results["rows"])
        if args.plot:
            draw(results, args.plot)

    return exit_code(work)


def measure_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Return a row for each size and way to run it."""
    base, settings = config_of_size(args.size), ModelSettings(device=args.device, threads=args.threads)
    sizes = points(args.tokens, args.cameras, args.actions)
    configs = [point.config(base) for point in sizes]
    rows: list[Row] = []
    with tqdm(total=len(sizes), unit="size") as bar:
        for point, config in zip(sizes, configs, strict=True):
            policy = None  # frees the one before
            policy = models.random_policy(config, settings, action_size=point.actions)
            for row in _timed(policy, args.rounds, args.seconds / len(sizes)):
                rows.append(row | point._asdict() | {"visual_tokens": policy.visual_tokens})
                bar.write(_line(rows[-1]))
            bar.update()
    made = meta(**describe_backend(policy.backend), command="growth", size=args.size, rounds=args.rounds)
    return {"meta": made, "rows": rows}


def _line(row: Row) -> str:
    duration_ms, speedup, _ = _steadiest(row)
    size = f"{row['cameras']} x {row['tokens']:4d} tokens, {row['actions']:2d} dimensions"
    return f"{size}  {row['name']:18s} {duration_ms:9.1f} ms  {speedup:.2f}"


def _timed(policy: OpenVLAPolicy, rounds: int, limit_s: float) -> list[Row]:
    plain = PlainPolicy(policy)
    runners: dict[str, Runner] = {PLAIN: lambda seen: plain.infer(Request(seen, PruningSettings()))}
    for name, pruning in _PRUNING.items():
        runners[name] = lambda seen, pruning=pruning: policy.infer(Request(seen, pruning))
    seen, cpu = _observations(policy.cameras), policy.backend.device.type == "cpu"
    series = time_in_turn(runners, seen, rounds, policy.backend.synchronize, lambda _: None, cpu=cpu, limit_s=limit_s)
    return [times(name, one, series[PLAIN]) for name, one in series.items()]


def _observations(cameras: int) -> list[Observation]:
    """Frames that ship; of several cameras each shows another frame."""
    seen = load_observations(models.INSTRUCTION)
    images = [next(iter(one.images.values())) for one in seen]
    frames = [{f"camera_{c}": images[(start + c) % len(images)] for c in range(cameras)} for start in range(len(seen))]
    return [dataclasses.replace(one, images=frame) for one, frame in zip(seen, frames, strict=True)]


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, and for each size the median of each way to run a step with its ratio to the plain one."""
    run, rows = results["meta"], results["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    sizes: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in rows:
        sizes.setdefault((row["cameras"], row["tokens"], row["actions"]), {})[row["name"]] = row
    lines = []
    for size, ways in sizes.items():
        pairs = [_steadiest(ways[name])[:2] for name in names]
        lines.append([*map(str, size), *(f"{ms(duration_ms)} ({speedup:.2f})" for duration_ms, speedup in pairs)])
    head = ["cameras", "visual tokens of each", "action dimensions", *(f"{name} [ms] (speedup)" for name in names)]
    words = (
        f"{run['size']} on {run['device']}, threads: {run['threads']}, {run['dtype']}, engine {run['engine']}; "
        f"torch {run['versions']['torch']}; {run['rounds']} rounds; medians{_steadiest(rows[0])[2]}."
    )
    return f"{words}\n\n{table(head, lines)}"


def _steadiest(row: Row) -> tuple[float, float, str]:
    """Return median [ms] and ratio of a row by processor time, where the device is the processor, else by the clock."""
    if "cpu_p50_ms" in row:
        return row["cpu_p50_ms"], row["cpu_speedup"], ", processor time"
    return row["p50_ms"], row["speedup"], ""


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot milliseconds against visual tokens, cameras and action dimensions, the other two at their middle."""
    from matplotlib.figure import Figure

    rows = results["rows"]
    tokens, cameras, actions = (sorted({row[key] for row in rows}) for key in Point._fields)
    figure = Figure(figsize=(12, 4), layout="constrained")
    labels = ("visual tokens of one image", "cameras", "action dimensions")
    middle = points(tokens, cameras, actions)[0]._replace(tokens=256 if 256 in tokens else min(tokens))
    for axes, key, label in zip(figure.subplots(1, 3, sharey=True), Point._fields, labels, strict=True):
        for name in (PLAIN, DENSE, PRUNED):
            fixed = {field: value for field, value in middle._asdict().items() if field != key}
            chosen = [row for row in rows if row["name"] == name and fixed.items() <= row.items()]
            line = sorted((row[key], _steadiest(row)[0]) for row in chosen)
            axes.plot(*zip(*line, strict=True), marker="o", label=name)
        axes.set(xlabel=label, xticks=sorted({row[key] for row in chosen}), ylim=(0, None))
    figure.axes[0].set_ylabel(f"ms a step (median{_steadiest(rows[0])[2]})")
    figure.axes[0].legend()
    figure.suptitle(f"{results['meta']['size']} on {results['meta']['device']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
