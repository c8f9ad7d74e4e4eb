"""Does a process that runs for long stay as it was? A run cut into windows, and its end compared with its start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from flashvla_ros.bench.usage import Usage

MEMORY_GROWTH, LATENCY_GROWTH = 0.01, 0.10  # greatest shares that count as none
WARM_UP_SHARE = 1 / 6  # of the run, left out
MIN_WINDOWS = 6  # one of warm-up and four quarters at least


@dataclasses.dataclass
class Window:
    """What was seen in one span of a run.

    Attributes:
        start_s: Since the start of the run.
        usage: The process, sampled.
        latency_s: Of every control step.
        fresh: Steps among them that ran the model.
        set_s: Times that the parameter service took to answer.
        spin_s: Times of the reference loop, which no code of this package can make slower.
    """

    start_s: float
    usage: list[Usage] = dataclasses.field(default_factory=list)
    latency_s: list[float] = dataclasses.field(default_factory=list)
    fresh: int = 0
    set_s: list[float] = dataclasses.field(default_factory=list)
    spin_s: list[float] = dataclasses.field(default_factory=list)

    def row(self) -> dict[str, float | int]:
        """Sum it up for a results file; NaN where nothing was seen."""
        first, last = self.usage[0], self.usage[-1]
        steps = len(self.latency_s)
        return {
            "start_s": round(self.start_s, 1),
            "rss_mib": round(float(np.median([usage.rss_kib for usage in self.usage])) / 1024, 2),
            "anonymous_mib": round(float(np.median([usage.anonymous_kib for usage in self.usage])) / 1024, 2),
            "threads": max(usage.threads for usage in self.usage),
            "handles": max(usage.handles for usage in self.usage),
            "cpu_ms_a_step": round(1e3 * (last.cpu_s - first.cpu_s) / steps, 2) if steps else float("nan"),
            "steps": steps,
            "fresh": self.fresh,
            "latency_p50_ms": _percentile_ms(self.latency_s, 50),
            "latency_p99_ms": _percentile_ms(self.latency_s, 99),
            "changes": len(self.set_s),
            "set_max_ms": _percentile_ms(self.set_s, 100),
            "spin_p50_ms": _percentile_ms(self.spin_s, 50),
            "spin_p99_ms": _percentile_ms(self.spin_s, 99),
        }


@dataclasses.dataclass(frozen=True)
class Drift:
    """The last quarter of a run against the first quarter after the warm-up.

    Attributes:
        memory_growth: Of the resident memory, median against median, as a share of the first.
        thread_growth: Of the greatest number of threads.
        handle_growth: Of the greatest number of open file descriptors.
        latency_growth: Of the 99th percentile of all steps of a quarter, as a share of the first.
        cpu_growth: Of the processor time of the whole process for a step, as a share of the first. Other work on the
            machine hardly changes it; the parameters in force do.
        spin_growth: Of the same percentile of the reference loop: what the machine did to anything that ran on it.
    """

    memory_growth: float
    thread_growth: int
    handle_growth: int
    latency_growth: float
    cpu_growth: float
    spin_growth: float

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Drift:
        """Compare.

        Raises:
            ValueError: There are too few windows to speak of a start and an end.
        """
        if len(windows) < MIN_WINDOWS:
            raise ValueError(f"a drift needs at least {MIN_WINDOWS} windows, got {len(windows)}")
        settled = windows[max(1, round(WARM_UP_SHARE * len(windows))) :]
        quarter = max(1, len(settled) // 4)
        start, end = settled[:quarter], settled[-quarter:]
        memory = [float(np.median([u.rss_kib for window in part for u in window.usage])) for part in (start, end)]
        threads = [max(u.threads for window in part for u in window.usage) for part in (start, end)]
        handles = [max(u.handles for window in part for u in window.usage) for part in (start, end)]
        latency = [_percentile_ms([s for window in part for s in window.latency_s], 99) for part in (start, end)]
        cpu = [_cpu_s_a_step(part) for part in (start, end)]
        spin = [_percentile_ms([s for window in part for s in window.spin_s], 99) for part in (start, end)]
        return cls(
            memory_growth=memory[1] / memory[0] - 1.0,
            thread_growth=threads[1] - threads[0],
            handle_growth=handles[1] - handles[0],
            latency_growth=latency[1] / latency[0] - 1.0,
            cpu_growth=cpu[1] / cpu[0] - 1.0,
            spin_growth=spin[1] / spin[0] - 1.0,
        )

    def leaks(self) -> list[str]:
        """Say in words what grew that must not, on whatever machine; empty where nothing did."""
        faults = []
        if self.memory_growth >= MEMORY_GROWTH:
            faults.append(f"memory grew by {self.memory_growth:.2%}")
        if self.thread_growth > 0:
            faults.append(f"{self.thread_growth} more threads")
        if self.handle_growth > 0:
            faults.append(f"{self.handle_growth} more open files")
        return faults

    def slowness(self) -> list[str]:
        """Say that the latency grew; a machine with other work may do that to it."""
        return [] if self.latency_growth <= LATENCY_GROWTH else [f"latency p99 grew by {self.latency_growth:.1%}"]


def _cpu_s_a_step(windows: Sequence[Window]) -> float:
    steps = sum(len(window.latency_s) for window in windows)
    return (windows[-1].usage[-1].cpu_s - windows[0].usage[0].cpu_s) / steps if steps else float("nan")


def _percentile_ms(values_s: Sequence[float], percent: float) -> float:
    return round(1e3 * float(np.percentile(values_s, percent)), 3) if values_s else float("nan")
