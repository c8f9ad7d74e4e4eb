"""Does online calibration hold its bound? The gate's own controller on simulated streams, with and without a shift.

A step's need is uniform in [0, 1], and its reuse is off with probability ``hard`` * need² / 2, so that the risk of a
level λ is known: ``hard`` * λ³ / 6. After a shift the world is three times as hard. Finished runs are kept in a file of
lines, so that the same command and code go on where they were stopped.

    python -m benchmarks.calibration --runs 200 --steps 20000 --json F.json --plot docs/images/calibration.png
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digest import digest
from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.settings import GateSettings, PruningSettings, Settings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate import calibration
from flashvla_ros.gate.calibration import LEVELS, CalibrationState, Trial
from flashvla_ros.gate.decision import FreshComparison, GateMeasurements
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory

RATES = (0.05, 0.1, 0.2)
HARDER = 3.0
RISK = 0.02
BINS = 100  # of the curves over time
After = Callable[..., CalibrationState]


def risk_of(level: float, hard: float) -> float:
    """Return the share of all steps that a level would reuse and that would be off."""
    return hard * level**3 / 6.0


def _memory() -> GateMemory:
    seen = [GateInput("go", stamp_s, np.zeros((1, 1, 1, 3), np.float32)) for stamp_s in (0.0, 0.1)]
    action = np.full((1, 3), 0.5), np.ones((1, 1))
    memory = GateMemory()
    for one in seen:
        memory = memory.after_fresh(FreshResult(one, *action, np.arange(4), 8, PruningSettings()), GateSettings())
    return memory


MEMORY = _memory()


def steps(
    settings: Settings,
    draw: Iterator[tuple[float, bool, bool]],
    *,
    state: CalibrationState | None = None,
    after: After = calibration.after_step,
) -> Iterator[tuple[CalibrationState, Trial, bool]]:
    """Run the controller over a stream.

    Args:
        settings: With calibration switched on.
        draw: Yields each step's need, whether its reuse is off, and whether the robot is still.
        state: To begin with.
        after: The rule that is under test.

    Yields:
        The state after each step, what was decided, and whether a reuse was or would have been off.
    """
    state = calibration.entering(state or CalibrationState(), "go", settings)
    for need, off, still in draw:
        comparison = FreshComparison(0.0, 1.0, 1.0 - need, either_small=still, difference_small=True)
        trial, decision = calibration.try_reuse(MEMORY, GateMeasurements(comparison, age_s=0.1), state, settings, 0.1)
        state = after(state, trial, None if decision.reuse else off, settings.calibration)
        yield state, trial, off


def stream(count: int, seed: int, hard: Callable[[int], float]) -> Iterator[tuple[float, bool, bool]]:
    """Yield the steps of a moving robot."""
    rng = np.random.default_rng(seed)
    needs, chances = rng.random(count), rng.random(count)
    for index in range(count):
        yield needs[index], bool(chances[index] < hard(index) * needs[index] ** 2 / 2.0), False


def online(rate: float, risk: float = RISK) -> Settings:
    """Return the defaults with calibration switched on."""
    return Settings().with_values(
        {"gate.calibration": "online", "calibration.risk": risk, "calibration.audit_rate": rate}
    )


def simulate(rate: float, shift: bool, seed: int, count: int) -> dict[str, Any]:
    """Return what one run came to, and its curves."""
    half = count // 2
    losses, levels, certified, reused = np.zeros(count), np.zeros(count), np.zeros(count), 0

    def hard(index: int) -> float:
        return HARDER if shift and index >= half else 1.0

    for index, (state, trial, off) in enumerate(steps(online(rate), stream(count, seed, hard))):
        losses[index] = trial.would_reuse and off
        reused += trial.reason == "reuse"
        levels[index], certified[index] = state.permissiveness, state.certified_level
    risks = [risk_of(level, 1.0) for level in certified[: half if shift else count]]
    taken_back = np.flatnonzero(np.diff(certified[half:] if shift else certified) < 0.0)
    return {
        "loss": losses.mean(),
        "worst_window": np.convolve(losses, np.ones(1000) / 1000, "valid").max() if count >= 1000 else losses.mean(),
        "reuse": reused / count,
        "audits": state.audits / count,
        "unsafe": max(risks) > RISK,
        "taken_back_after": int(taken_back[0]) + 1 if len(taken_back) else None,
        "certified": certified[half - 1 if shift else -1],
        "certified_last": certified[-1],
        "loss_curve": _binned(losses),
        "level_curve": _binned(levels),
        "certified_curve": _binned(certified),
    }


def _binned(values: FloatArray) -> list[float]:
    return [round(float(part.mean()), 4) for part in np.array_split(values, BINS)]


def rows_of(runs: Mapping[tuple[float, bool], list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """Return one row for each audit rate, with and without the shift."""
    rows = []
    for (rate, shift), found in runs.items():
        names = ("loss", "reuse", "audits", "certified", "certified_last")
        mean = {name: float(np.mean([run[name] for run in found])) for name in names}
        taken_back = [run["taken_back_after"] for run in found if run["taken_back_after"] is not None]
        curves = ("loss_curve", "level_curve", "certified_curve")
        rows.append(
            {
                "audit_rate": rate,
                "shift": shift,
                "runs": len(found),
                **mean,
                "loss_se": float(np.std([run["loss"] for run in found]) / np.sqrt(len(found))),
                "loss_most": max(run["loss"] for run in found),
                "bound": RISK + 1.0 / (rate * count),
                "worst_window": float(np.mean([run["worst_window"] for run in found])),
                "unsafe_runs": sum(run["unsafe"] for run in found),
                "taken_back": len(taken_back),
                "taken_back_after": float(np.median(taken_back)) if taken_back else None,
                **{name: np.mean([run[name] for run in found], axis=0).tolist() for name in curves},
            }
        )
    return rows


def page(results: Mapping[str, Any]) -> str:
    """Return the table."""
    made = results["meta"]
    safest, safe_after = (
        max((level for level in LEVELS if risk_of(level, hard) <= made["risk"]), default=0.0) for hard in (1.0, HARDER)
    )
    lines = [
        [
            f"{row['audit_rate']:g}",
            "yes" if row["shift"] else "no",
            str(row["runs"]),
            f"{100 * row['loss']:.2f} ± {100 * row['loss_se']:.2f} %",
            f"{100 * row['bound']:.2f} %",
            f"{100 * row['loss_most']:.2f} %",
            f"{100 * row['worst_window']:.1f} %",
            f"{100 * row['reuse']:.1f} %",
            f"{100 * row['audits']:.1f} %",
            f"{row['unsafe_runs']} of {row['runs']}",
            f"{row['certified']:.2f}",
            f"{row['taken_back']} of {row['runs']}"
            + (f", after {row['taken_back_after']:.0f} steps" if row["shift"] and row["taken_back"] else ""),
            f"{row['certified_last']:.2f}" if row["shift"] else "",
        ]
        for row in results["rows"]
    ]
    head = ["audits", "shift", "runs", "loss ± s.e.", "bound", "worst run", "worst 1000 steps", "reuse", "audited"]
    head += ["unsafe claims", "certified λ", "taken back", "certified λ at the end"]
    return (
        f"{made['device']}; runs of {made['steps']} steps, ε = {made['risk']:g}, confidence 0.95. The greatest safe "
        f"level is {safest:.2f} before the shift and {safe_after:.2f} after it.\n\n{table(head, lines)}"
    )


def draw(rows: list[dict[str, Any]], count: int, path: Path) -> None:
    """Draw λ, what is certified, and the loss over time, mean of all runs with a shift."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (upper, lower) = plt.subplots(2, sharex=True, figsize=(7, 4.5))
    at = (np.arange(BINS) + 0.5) * count / BINS
    for row, colour in zip((row for row in rows if row["shift"]), ("C0", "C1", "C2"), strict=False):
        upper.plot(at, row["level_curve"], colour, label=f"λ, audits {row['audit_rate']:g}")
        upper.plot(at, row["certified_curve"], colour, linestyle=":")
        lower.plot(at, 100 * np.asarray(row["loss_curve"]), colour, linewidth=0.8)
    lower.axhline(100 * RISK, color="black", linestyle="--", label="ε")
    upper.set_ylabel("λ (dotted: certified)")
    lower.set_ylabel("loss [% of steps]")
    lower.set_xlabel("step; the world is three times as hard from the middle on")
    upper.legend(fontsize=8)
    lower.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def finished(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the runs that a file of lines holds; a line that was cut off is played again, and spoils no other."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as stream_:
            stream_.write("\n")
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def play(runs: int, count: int, path: Path) -> dict[tuple[float, bool], list[dict[str, Any]]]:
    """Run what the file does not hold yet, seed by seed, and return everything."""
    code = digest(HARDER, RISK, BINS, _memory, steps, stream, online, risk_of, simulate, _binned)
    names = ("rate", "shift", "seed", "steps", "code")
    known = {tuple(run.get(name) for name in names): run for run in finished(path)}
    found: dict[tuple[float, bool], list[dict[str, Any]]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream_:
        for seed, rate, shift in itertools.product(range(runs), RATES, (False, True)):
            key = (rate, shift, seed, count, code)
            if key not in known:
                run = simulate(rate, shift, seed, count)
                plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in run.items()}
                known[key] = dict(zip(names, key, strict=True)) | plain
                stream_.write(json.dumps(known[key]) + "\n")
                stream_.flush()
            found.setdefault((rate, shift), []).append(known[key])
    return found


def main() -> int:
    """Simulate, print the table, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each cell (%(default)s)")
    parser.add_argument("--steps", type=int, default=20_000, help="of each run (%(default)s)")
    parser.add_argument("--ledger", type=Path, default=Path("calibration.jsonl"), help="finished runs (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw λ and loss over time")
    args = parser.parse_args()

    def work() -> None:
        rows = rows_of(play(args.runs, args.steps, args.ledger), args.steps)
        made = meta(processor_name(), command="calibration", runs=args.runs, steps=args.steps, risk=RISK)
        publish(page, made, rows, args.json)
        if args.plot:
            draw(rows, args.steps, args.plot)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
