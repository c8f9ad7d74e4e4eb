"""How fast does the gate notice that the world has changed? Calibration, fixed δ and the published gate, side by side.

Each gate plays the same episodes one after another: *before* from a cold start, then for each shift *during*, from what
was learnt before, and *after*, where everything is as it was. As in :mod:`benchmarks.closed_loop` the model is asked at
every reused step too, so that *off* is what was executed.

    python -m benchmarks.shift --ledger L.jsonl --json F.json --plot F.png

A run that was stopped goes on at its next episode, as long as code, settings and checkpoints are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.closed_loop import ONLINE, Ledger, Played, Scene, WorldOf, extend, scenes_of, settings_of, totals
from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.evaluation.modes import BUILT_IN
from flashvla_ros.evaluation.statistics import Rate
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.sim.world import World

POLICY, KEEP = "demo", 0.625
MODES: Mapping[str, Mapping[str, Any]] = {
    "published": {name: value for name, value in BUILT_IN["paper"].items() if name.startswith("gate.")},
    "δ 0.5": {},
    "online": ONLINE,
}
BEFORE, WINDOW = "before", 6
ROUNDS = {BEFORE: 8, "during": 4, "after": 4}  # seeds of each phase; a round is one episode of each task


class Quick(World):
    """A robot that moves twice as far in a step."""

    def step(self, action: ArrayLike) -> None:
        """Do in one step what takes two."""
        super().step(action)
        super().step(action)


class Dark(World):
    """The same scenes at 0.6 of their light."""

    def reset(self, task: str, seed: int, progress: float = 0.0) -> None:
        """Turn the lights down at the start of each episode, which a reset turns up again."""
        super().reset(task, seed, progress)
        self.scene.set_light(0.6)


def moved(size: int) -> World:
    """Return a world whose camera has been knocked by 4 degrees and 3 cm."""
    world = World(size)
    camera = world.camera
    world.camera = dataclasses.replace(camera, azimuth=camera.azimuth + 4.0, distance=camera.distance + 0.03)
    return world


SHIFTS: Mapping[str, WorldOf] = {"lighting": Dark, "camera": moved, "twice as fast": Quick, "weight noise": World}


def make_noisy(checkpoint: Path, share: float, folder: Path) -> Path:
    """Copy a checkpoint, with Gaussian noise of a share of each matrix's own spread added to its weights."""
    from safetensors.numpy import load_file, save_file

    copy, rng = shutil.copytree(checkpoint, folder / "noisy"), np.random.default_rng(0)
    for file in sorted(copy.glob("*.safetensors")):
        weights = load_file(file)
        for name, weight in sorted(weights.items()):
            if weight.ndim > 1:
                noise = share * weight.astype(np.float32).std() * rng.standard_normal(weight.shape)
                weights[name] = (weight + noise).astype(weight.dtype)
        save_file(weights, file, metadata={"format": "pt"})
    return copy


def phases(seeds: Mapping[str, int]) -> Iterator[tuple[str, str, list[Scene]]]:
    """Yield shift, phase and scenes of every chain; all shifts have the same ones."""
    first = 0
    for phase, count in seeds.items():
        scenes = scenes_of(range(first, first + count))
        first += count
        yield from ((shift, phase, scenes) for shift in ([BEFORE] if phase == BEFORE else SHIFTS))


def play(ledger: Ledger, mode: str, noisy: Path) -> dict[tuple[str, str], list[Played]]:
    """Play what the ledger does not hold of one gate, and return the episodes of each shift and phase."""
    last: dict[str, Played] = {}
    found: dict[tuple[str, str], list[Played]] = {}
    for shift, phase, scenes in phases(ROUNDS):
        changed = phase == "during"
        settings = settings_of(POLICY, KEEP, MODES[mode])
        if changed and shift == "weight noise":
            settings = settings.with_values({"model.checkpoint": str(noisy)})
        world_of, after = SHIFTS[shift] if changed else World, last.get(shift, last.get(BEFORE))
        chain = shift, phase, mode
        found[shift, phase] = extend(ledger, chain, settings, scenes, after=after, world_of=world_of)
        last[shift] = found[shift, phase][-1]
    return found


def curve(episodes: Sequence[Played]) -> dict[str, list[float]]:
    """Return reuse and off as shares of the steps of each window of episodes, and λ at its end."""
    parts = [episodes[first : first + WINDOW] for first in range(0, len(episodes), WINDOW)]
    sums = [totals(part) for part in parts]
    return {
        "reused": [round(one["reused"] / one["steps"], 4) for one in sums],
        "off": [round(one["off"] / one["steps"], 4) for one in sums],
        "permissiveness": [round(part[-1]["permissiveness"], 4) for part in parts],
    }


def rows_of(played: Mapping[str, Mapping[tuple[str, str], Sequence[Played]]]) -> list[dict[str, Any]]:
    """Return one row for each gate, shift and phase."""
    rows = []
    for mode, (shift, phase, _) in itertools.product(played, phases(ROUNDS)):
        episodes = played[mode][shift, phase]
        counts = {"episodes": len(episodes), **totals(episodes)}
        rows.append({"shift": shift, "phase": phase, "mode": mode, **counts, "curve": curve(episodes)})
    return rows


def page(results: Mapping[str, Any]) -> str:
    """Return the table."""
    lines = []
    for row in results["rows"]:
        online, found = "online" in row["mode"], row["curve"]
        lines.append(
            [
                row["mode"],
                row["shift"] if row["phase"] == BEFORE else f"{row['shift']}, {row['phase']}",
                str(Rate(row["success"], row["episodes"])),
                *(f"{100 * row[name] / row['steps']:.1f} %" for name in ("reused", "audits", "off")),
                ", ".join(f"{100 * share:.0f}" for share in found["off"]),
                ", ".join(f"{level:.2f}" for level in found["permissiveness"]) if online else "",
            ]
        )
    head = [
        "gate",
        "world",
        "success",
        "reused",
        "audited",
        "off",
        f"off in % of each {WINDOW} episodes",
        "λ after them",
    ]
    made = results["meta"]
    about = f"{made['policy']} at keep ratio {made['keep']:g}; weight noise {made['noise']:g}"
    return f"{made['device']}; ε = {made['risk']:g}; {about}.\n\n{table(head, lines)}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw λ, reuse and off over the episodes, one column a shift."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {(row["mode"], row["shift"], row["phase"]): row["curve"] for row in rows}
    figure, axes = plt.subplots(3, len(SHIFTS), sharex=True, sharey="row", figsize=(11, 6))
    borders = np.cumsum([len(TASKS) * count for count in ROUNDS.values()])[:-1]
    for (line, name), (column, shift) in itertools.product(
        enumerate(("permissiveness", "reused", "off")), enumerate(SHIFTS)
    ):
        panel = axes[line, column]
        for colour, mode in enumerate(MODES):
            parts = [found[mode, BEFORE if phase == BEFORE else shift, phase][name] for phase in ROUNDS]
            values = np.concatenate(parts) * (1.0 if line == 0 else 100.0)
            if line or "online" in mode:
                panel.plot((np.arange(len(values)) + 1) * WINDOW, values, f"C{colour}", label=mode)
        for border in borders:
            panel.axvline(border, color="grey", linewidth=0.6)
        if name == "off":
            panel.axhline(100 * ONLINE["calibration.risk"], color="black", linestyle="--", linewidth=0.8, label="ε")
            panel.set_xlabel("episode")
    for column, shift in enumerate(SHIFTS):
        axes[0, column].set_title(shift, fontsize=10)
    for line, label in enumerate(("λ", "reused [% of steps]", "off [% of steps]")):
        axes[line, 0].set_ylabel(label)
    axes[2, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> int:
    """Play what the ledger does not hold, print the table, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.1, help="share of a matrix's own spread (%(default)s)")
    parser.add_argument("--ledger", type=Path, default=Path("shift.jsonl"), help="episodes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them")
    args = parser.parse_args()

    def work() -> None:
        ledger, checkpoint = Ledger(args.ledger), Path(settings_of(POLICY, KEEP, {}).model.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            noisy = make_noisy(checkpoint, args.noise, Path(folder))
            rows = rows_of({mode: play(ledger, mode, noisy) for mode in MODES})
        made = meta(processor_name(), command="shift", risk=ONLINE["calibration.risk"], policy=POLICY, keep=KEEP)
        publish(page, {**made, "noise": args.noise}, rows, args.json)
        if args.plot:
            draw(rows, args.plot)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
