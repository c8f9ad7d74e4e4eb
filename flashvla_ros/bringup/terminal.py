"""What a bringup prints: progress while it starts, a line per episode, a summary."""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Any

from flashvla_ros.bringup.monitor import Figures, Monitor
from flashvla_ros.bringup.processes import Bringup
from flashvla_ros.msg import EpisodeStatus

_HEADER = (
    f"{'episode':>7}  {'instruction':<24}  {'success':<7}  {'steps':>5}  {'reuse':>5}  {'p50 ms':>7}  {'p95 ms':>7}"
)
_QUIET_S = 5.0  # between two states where the output is not a terminal


class Screen:
    """Lines of text, and below them one state that is replaced in place on a terminal. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._terminal = sys.stdout.isatty()
        self._state = ""
        self._shown_s = -math.inf

    def line(self, text: str) -> None:
        """Print a line above the state."""
        with self._lock:
            self._clear()
            print(text, flush=True)
            if self._terminal and self._state:
                print(self._state, end="", flush=True)

    def state(self, text: str) -> None:
        """Show what goes on."""
        with self._lock:
            if self._terminal:
                self._clear()
                print(text, end="", flush=True)
            elif time.monotonic() - self._shown_s >= _QUIET_S:
                self._shown_s = time.monotonic()
                print(text, flush=True)
            self._state = text

    def end(self) -> None:
        """Take the state away."""
        with self._lock:
            self._clear()
            self._state = ""

    def _clear(self) -> None:
        if self._terminal and self._state:
            print("\r\x1b[K", end="")


class Progress:
    """Turns what a monitor hears into lines."""

    def __init__(self, monitor: Monitor, screen: Screen, bringup: Bringup) -> None:
        self._monitor = monitor
        self._screen = screen
        self._bringup = bringup
        self._started_s = time.monotonic()
        self._episodes: list[EpisodeStatus] = []

    @property
    def complete(self) -> bool:
        """Whether every episode that was asked for has ended."""
        return 0 < self._bringup.episodes <= len(self._episodes)

    def update(self) -> None:
        """Show what is new."""
        self._print_episodes(self._monitor.finished())
        self._screen.state(self._state())

    def close(self) -> None:
        """Print the last episodes and the summary."""
        self._print_episodes(self._monitor.finished(now=True))
        self._screen.end()
        total = self._monitor.figures()
        successes = sum(episode.success for episode in self._episodes)
        parts = [f"{successes} of {len(self._episodes)} episodes succeeded"] if self._episodes else []
        if total.steps:
            parts.append(f"{total.steps} steps, {total.reuse_rate:.0%} reused")
            if not math.isnan(total.visual_flops_ratio):  # of a server's model nothing is known
                parts.append(f"visual-token FLOPs {total.visual_flops_ratio:.0%} of the dense model's")
            parts.append(f"latency p50 {total.latency_p50_ms:.1f} ms, p95 {total.latency_p95_ms:.1f} ms")
        if parts:
            self._screen.line("; ".join(parts))

    def row(self) -> dict[str, Any]:
        """Return the run as one row of a results file."""
        figures = self._monitor.figures()
        return {
            "mode": "+".join(self._monitor.modes),
            "task": self._bringup.task if not self._bringup.camera else self._bringup.instruction,
            "episodes": len(self._episodes),
            "successes": sum(episode.success for episode in self._episodes),
            "reuse_rate": figures.reuse_rate,
            "visual_flops_ratio": figures.visual_flops_ratio,
            "latency_p50_ms": figures.latency_p50_ms,
            "latency_p95_ms": figures.latency_p95_ms,
        }

    def _print_episodes(self, finished: list[tuple[EpisodeStatus, Figures]]) -> None:
        for episode, figures in finished:
            if not self._episodes:
                self._screen.line(_HEADER)
            self._episodes.append(episode)
            self._screen.line(
                f"{episode.episode:>7}  {episode.instruction[:24]:<24}  {'yes' if episode.success else 'no':<7}  "
                f"{episode.steps:>5}  {_percent(figures.reuse_rate):>5}  {figures.latency_p50_ms:>7.1f}  "
                f"{figures.latency_p95_ms:>7.1f}{'  ' + episode.error if episode.error else ''}"
            )

    def _state(self) -> str:
        status, episode = self._monitor.status, self._monitor.episode
        elapsed_s = time.monotonic() - self._started_s
        if status is None:
            what = "the policy" if self._bringup.camera else "the policy and the simulation"
            return f"loading {what} … {elapsed_s:.0f} s"
        words = [status.state]
        if status.stop_reason:
            words.append(status.stop_reason)
        if episode is not None:
            words.append(f"episode {episode.episode}")
        if status.instruction:
            words.append(repr(status.instruction))
        if status.steps:
            words += [f"step {status.steps}", f"{status.step_rate_hz:.1f} Hz", f"reuse {_percent(status.reuse_rate)}"]
        return ", ".join(words)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"
