"""What a step of each rule takes: against plain ``generate`` in the same rounds, and against the device's roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.bench.configurations import PLAIN
from flashvla_ros.bench.measure import Ledger, Prober, Roofline
from flashvla_ros.bench.rounds import Runner, Series, time_in_turn
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy

Step = Callable[[Observation], tuple[Any, bool]]  # what came of it, and whether the model ran
_RESAMPLES, _PROBED = 2000, 8


def timed(
    policy: OpenVLAPolicy, rows: Mapping[str, Callable[[], Step]], frames: list[Observation], reuse: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return times of every row and of plain ``generate`` in milliseconds: processor time where the device is a CPU.

    Args:
        policy: Dense.
        rows: Name to what makes a step, which may keep a state.
        frames: Of one episode; every row sees all.
        reuse: Name to the share of steps that did not run the model, in closed loop.
    """
    plain = PlainPolicy(policy)
    every = {PLAIN: lambda: _step_of(plain), **rows}
    ran: dict[str, list[bool]] = {name: [] for name in every}
    prober, roofline = Prober(policy.backend), Roofline()

    def runner(name: str) -> Runner:
        step = every[name]()

        def run(seen: Observation) -> Any:
            result, fresh = step(seen)
            ran[name].append(fresh)
            return result

        return run

    def probe(number: int) -> None:
        if number % _PROBED == 1:
            prober.probe(roofline)

    series = time_in_turn(
        {name: runner(name) for name in every},
        frames,
        len(frames),
        policy.backend.synchronize,
        probe,
        cpu=policy.backend.device.type == "cpu",
        warm_up=0,
    )
    base = _deciding(series[PLAIN])
    found = {}
    for name, one in series.items():
        least_s = roofline.least_s(_work(policy, every[name](), frames))
        made = summary(_deciding(one), np.array(ran[name]), base, reuse.get(name, 0.0))
        found[name] = made | {"least_ms": 1e3 * least_s, "over_least": made["model_ms"] / (1e3 * least_s)}
    return found


def summary(
    seconds: NDArray[np.float64], ran: NDArray[np.bool_], plain: NDArray[np.float64], reuse: float
) -> dict[str, Any]:
    """Return the medians of steps with and without the model, the mean step of the two, and its ratio to `plain`.

    Args:
        seconds: [rounds] of the steps.
        ran: [rounds] whether the model ran.
        plain: [rounds] of plain ``generate``.
        reuse: Share of steps without the model, which weights the mean step.

    Returns:
        ``speedup_95`` is the percentile interval over resampled rounds.
    """

    def mean_step(chosen: NDArray[np.intp]) -> float:
        values, mask = seconds[chosen], ran[chosen]
        parts = (1.0 - reuse, values[mask]), (reuse, values[~mask])
        return float(sum(share * np.median(part) for share, part in parts if share and len(part)))

    def ratio(chosen: NDArray[np.intp]) -> float:
        return float(np.median(plain[chosen])) / mean_step(chosen)

    whole, rng = np.arange(len(seconds)), np.random.default_rng(0)
    drawn = [ratio(rng.integers(len(seconds), size=len(seconds))) for _ in range(_RESAMPLES)]
    return {
        "model_ms": 1e3 * float(np.median(seconds[ran])),
        "skip_ms": 1e3 * float(np.median(seconds[~ran])) if not ran.all() else 0.0,
        "step_ms": 1e3 * mean_step(whole),
        "speedup": ratio(whole),
        "speedup_95": [float(value) for value in np.percentile(drawn, (2.5, 97.5))],
    }


def _step_of(plain: PlainPolicy) -> Step:
    return lambda seen: (plain.infer(Request(seen, PruningSettings())), True)


def _deciding(series: Series) -> NDArray[np.float64]:
    return np.array(series.cpu_seconds or series.seconds)


def _work(policy: OpenVLAPolicy, step: Step, frames: list[Observation]) -> Any:
    """Count a step that runs the model, once there is something to keep or to go on from."""
    for number, seen in enumerate(frames):
        with Ledger(policy.model.parameters()) as ledger:
            _, fresh = step(seen)
            ledger.done("step")
        if fresh and number > 1:
            break
    return ledger.stages["step"]
