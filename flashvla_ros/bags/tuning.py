"""From recordings to a recommended setting: the dense pass, the sweep, and what came out of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvla_ros.bags import sweep
from flashvla_ros.bags.answers import load_once
from flashvla_ros.bags.features import Features, collect
from flashvla_ros.bags.options import Source
from flashvla_ros.cli.fanout import fan_out
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.settings import GateSettings, Settings
from flashvla_ros.core.types import ActionSpec

SWEPT = ("delta", "max_angle_deg", "max_reuse")


@dataclasses.dataclass(frozen=True)
class BagJob:
    """The dense pass and the sweep of one recording; picklable, so that another process can do it."""

    bag: Path
    source: Source
    settings: Settings
    gates: tuple[GateSettings, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class BagOutcome:
    """What a job found; the seconds are those of the dense pass and of the sweep."""

    bag: Path
    features: Features
    sources: sweep.Sources
    warnings: list[str]
    provenance: Provenance
    dense_s: float
    sweep_s: float


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """What the thresholds do on some recordings.

    Attributes:
        settings: Those in force in the first recording, with the user's changes.
        outcomes: One for each recording.
        rows: One for each combination of the grid.
        now: The row of `settings` themselves.
        best: The recommended row, None where nothing within `max_error` reuses an action.
        max_error: Largest p95 error that is allowed.
        calibrated: What calibration would have done, one for each risk.
        node: Full name of the policy node.
        off: The gate was off, and is guarded in `settings` and every row.
    """

    settings: Settings
    outcomes: list[BagOutcome]
    rows: list[sweep.Row]
    now: sweep.Row
    best: sweep.Row | None
    max_error: float
    calibrated: list[sweep.Calibrated]
    node: str
    off: bool = False

    @property
    def label(self) -> str:
        """What the row `now` is called."""
        return "now, were gate.mode guarded" if self.off else "now"

    @property
    def recommended(self) -> dict[str, Any]:
        """The recommended parameters of the group gate, empty where there are none."""
        names = (("mode",) if self.off else ()) + SWEPT
        return {name: getattr(self.best.settings, name) for name in names} if self.best else {}

    @property
    def commands(self) -> list[str]:
        """What to type to set them."""
        return [f"ros2 param set {self.node} gate.{name} {value}" for name, value in self.recommended.items()]


def tune(
    bags: Sequence[Path],
    source: Source,
    thresholds: tuple[Sequence[float], Sequence[float], Sequence[int]],
    max_error: float,
    *,
    risks: Sequence[float] = (),
    jobs: int = 1,
    ray: str | None = None,
    ray_gpus: float = 0.0,
) -> Tuning:
    """Evaluate every combination of δ, ε₁ and reuse cap in `thresholds` on recordings, and calibration at `risks`.

    Raises:
        BagError: A recording cannot be read or lacks what is needed.
        SettingsError: No tokens are selected, so there is nothing that δ could compare.
    """
    settings = _tunable(source, bags)
    if off := settings.gate.mode == "off":
        settings = settings.with_values({"gate.mode": "guarded"})
    gates = (*sweep.grid(settings.gate, *thresholds), settings.gate)
    work = [BagJob(bag, source, settings, gates) for bag in bags]
    done = dict(fan_out(run_job, work, jobs=jobs, ray=ray, ray_gpus=ray_gpus))
    outcomes = [done[number] for number in range(len(work))]
    *rows, now = sweep.evaluate([(outcome.features, outcome.sources) for outcome in outcomes], gates)
    calibrated = [_calibrated(risk, outcomes, settings) for risk in risks]
    best = sweep.recommend(rows, max_error)
    return Tuning(settings, outcomes, rows, now, best, max_error, calibrated, source.node, off)


def _calibrated(risk: float, outcomes: Sequence[BagOutcome], settings: Settings) -> sweep.Calibrated:
    moving = {"control.dry_run": False, "control.speed_scale": 1.0}  # λ learns nothing from a robot that is not moved
    done, settings = sweep.Calibrated(risk), settings.with_values({"calibration.risk": risk, **moving})
    for outcome in outcomes:
        done = sweep.calibrate(done, outcome.features, settings)
    return done


def _tunable(source: Source, bags: Sequence[Path]) -> Settings:
    """Look into every recording before any long work; return the settings of the first."""
    opened = []
    for bag in bags:
        with source.open(bag) as recording:
            opened.append(recording.settings.first)
    settings = opened[0]
    if settings.pruning.method == "none":
        raise SettingsError("pruning.method is none, so no step can be reused: add --set pruning.method=ics")
    return settings


def run_job(job: BagJob) -> BagOutcome:
    """Run the dense model once over a recording, then sweep the gate over what it said."""
    loaded = load_once(job.settings)
    spec = ActionSpec.of(job.settings.action)
    drawn = tqdm(unit="frame", desc=job.bag.name, mininterval=INTERVAL_S, delay=INTERVAL_S)
    with job.source.open(job.bag) as recording, drawn as bar:
        started_s = time.monotonic()
        features = collect(recording.frames, loaded.policy, job.settings, spec, bar.update)
        dense_s = time.monotonic() - started_s
        warnings = recording.warnings
    started_s = time.monotonic()
    sources = sweep.sweep(features, job.gates)
    sweep_s = time.monotonic() - started_s
    here = Provenance(job.settings, loaded.checkpoint, loaded.platform)
    return BagOutcome(job.bag, features, sources, warnings, here, dense_s, sweep_s)
